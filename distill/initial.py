"""An untrained model from a config: `python -m distill init --config CONFIG.json --tokenizer DIR --out DIR`.

Weights are transformers' own initialisation with a seed. `previous_token_heads` turns that many heads of the first
layer into heads that attend to the previous token, through Qwen2's query and key biases: the first half of an induction
circuit (Olsson et al. 2022), which a model of a few million parameters otherwise needs most of its training to find.
"""

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from common.checkpoint import load_model, new_model, save_model
from common.device import Machine
from common.errors import UserError
from common.store import Workspace, stage
from common.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "vocab_size", "max_position_embeddings"),
)
_ALSO_KNOWN = (
    *("rope_theta", "rope_scaling", "rope_local_base_freq", "rope_interleaved", "rotary_pct", "rotary_emb_base"),
    *("partial_rotary_factor", "head_dim", "hidden_act", "sliding_window_pattern", "n_ctx", "use_mrope"),
    *("torch_dtype", "cache_implementation", "quantization_config", "gradient_checkpointing", "task_specific_params"),
    *("auto_map", "is_llama_config", "transformers.js_config", "unsloth_version", "unsloth_fixed"),
)
"""Fields of published configs that transformers takes, or leaves alone, without naming them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InitConfig:
    """The shape of an untrained model, as the content of a Hugging Face `config.json`."""

    config_json: str
    """JSON text with `model_type` and its fields; `vocab_size` includes padding."""
    seed: int = 0
    """Seed of the weights."""
    previous_token_heads: int = 0
    """First-layer heads that initially attend to the previous token (Qwen2 only)."""
    previous_token_sharpness: float = 4.0
    """Attention logit of the previous token, above that of an average position, roughly."""

    def __post_init__(self) -> None:
        fields = self.fields()
        _require_sizes(fields)
        heads = int(fields.get("num_attention_heads", 0))
        if self.previous_token_heads and (fields.get("model_type") != "qwen2" or self.previous_token_heads > heads):
            wanted = f"previous_token_heads of 0, or up to the {heads} heads of a qwen2 model"
            got = f"{self.previous_token_heads} for {fields.get('model_type')}"
            raise UserError("out-of-range", wanted=wanted, got=got, next_step="lower previous_token_heads")

    def fields(self) -> dict[str, Any]:
        """The parsed config; UserError where the text is not a JSON object with a `model_type`."""
        try:
            fields = json.loads(self.config_json)
        except json.JSONDecodeError as error:
            got = str(error)
        else:
            got = "" if isinstance(fields, dict) and "model_type" in fields else self.config_json[:60]
        if got:
            wanted = "a model config: a JSON object with model_type"
            raise UserError("wrong-format", wanted=wanted, got=got, next_step="correct the config file")
        return fields  # pyright: ignore

    def require_known_fields(self) -> None:
        """UserError for a field that the model type does not have: transformers would keep its default instead."""
        from transformers import AutoConfig

        fields = self.fields()
        try:
            config = AutoConfig.for_model(fields["model_type"])
            known = {*config.to_dict(), *config.attribute_map, *_ALSO_KNOWN}
        except (ValueError, TypeError):
            return  # an unknown type, which `new_model` refuses
        for name in fields:
            if name not in known and not name.startswith("_"):  # notes of the library that wrote the file
                nearest = difflib.get_close_matches(name, known, n=1)
                next_step = f"correct it to {nearest[0]}, or leave it out" if nearest else "leave it out"
                wanted = f"fields of a {fields['model_type']} config"
                raise UserError("unknown-name", wanted=wanted, got=name, next_step=next_step)

    def require_logits(self, tokenizer: Tokenizer) -> None:
        """UserError for a model with fewer logits, `vocab_size`, than the tokenizer has ids."""
        vocab_size = int(self.fields().get("vocab_size", 0))
        if vocab_size < tokenizer.size:
            wanted, next_step = f"vocab_size of at least the tokenizer's {tokenizer.size} ids", "raise vocab_size"
            raise UserError("mismatch", wanted=wanted, got=str(vocab_size), next_step=next_step)


def _require_sizes(fields: Mapping[str, Any]) -> None:
    """UserError for sizes that are no positive whole numbers, or contradict each other."""
    for name in _SIZES:
        value = fields.get(name)
        if value is not None and (type(value) is not int or value < 1):
            wanted = f"{name} as a whole number of at least 1"
            raise UserError("out-of-range", wanted=wanted, got=repr(value), next_step="correct the config")
    hidden, heads, kv_heads = (
        fields.get(name) for name in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    if hidden and heads and not fields.get("head_dim") and hidden % heads:
        wanted, got = "num_attention_heads that divide hidden_size, or a head_dim", f"{heads} heads for {hidden}"
    elif heads and kv_heads and heads % kv_heads:
        wanted, got = "num_key_value_heads that divide num_attention_heads", f"{kv_heads} for {heads}"
    else:
        return
    raise UserError("contradiction", wanted=wanted, got=got, next_step="change one of the two in the config")


def qwen2_config(
    *,
    hidden_size: int,
    intermediate_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    num_key_value_heads: int,
    vocab_size: int,
    max_position_embeddings: int,
    rope_theta: float = 10_000.0,
    tie_word_embeddings: bool = True,
) -> str:
    """`config_json` of a Qwen2 model; `vocab_size` may pad the tokenizer's ids."""
    # The parameters have the names of config.json.
    fields = locals() | {"model_type": "qwen2", "rms_norm_eps": 1e-6, "use_sliding_window": False}
    return json.dumps(fields, sort_keys=True)


def previous_token_biases(head_dim: int, rope_theta: float, sharpness: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Query and key biases [head_dim] whose rotary product peaks at a distance of one token.

    With rotary embeddings (Su et al. 2021, halves layout) constant q and k give, at distance d, the logit
    `sum_i a_i cos(d * theta_i - phase_i) / sqrt(head_dim)`; a phase of theta_i puts every term's peak at d = 1.
    Frequencies far below one turn in a few tokens do not separate neighbours and get no amplitude.
    """
    half = head_dim // 2
    theta = rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    amplitude = (theta > 0.05).double()
    scale = math.sqrt(sharpness * math.sqrt(head_dim) / float(amplitude.sum()))
    key = torch.cat([amplitude, torch.zeros(half, dtype=torch.float64)]) * scale
    query = torch.cat([amplitude * theta.cos(), -amplitude * theta.sin()]) * scale
    return query.float(), key.float()


@torch.no_grad()
def _plant_previous_token_heads(model: "PreTrainedModel", config: InitConfig) -> None:
    shape = model.config
    head_dim = shape.hidden_size // shape.num_attention_heads
    group = shape.num_attention_heads // shape.num_key_value_heads
    theta = float(config.fields().get("rope_theta", 10_000.0))
    query, key = previous_token_biases(head_dim, theta, config.previous_token_sharpness)
    attention = model.model.layers[0].self_attn
    for head in range(config.previous_token_heads):
        attention.q_proj.bias[head * head_dim : (head + 1) * head_dim] = query
        kv_head = head // group
        attention.k_proj.bias[kv_head * head_dim : (kv_head + 1) * head_dim] = key


def initial_model(config: InitConfig, tokenizer: Tokenizer) -> "PreTrainedModel":
    """The untrained model; UserError for too few logits for the tokenizer, or a config that transformers refuses."""
    config.require_known_fields()
    config.require_logits(tokenizer)
    torch.manual_seed(config.seed)
    model = new_model(config.fields())
    if config.previous_token_heads:
        _plant_previous_token_heads(model, config)
    return model


@stage(version=1)
def init(config: InitConfig, workspace: Workspace, tokenizer: Path) -> dict[str, Any]:
    """Write an untrained model folder."""
    loaded = Tokenizer.load(tokenizer)
    model = initial_model(config, loaded)
    save_model(model, loaded, workspace.folder, dtype=torch.float32)
    return {"parameters": model.num_parameters()}


def open_student(
    folder: Path | None, config: InitConfig | None, corpus: Path, machine: Machine
) -> tuple["PreTrainedModel", Tokenizer]:
    """The model to train and its tokenizer: a folder's, or else an untrained one with the corpus's tokenizer."""
    if (folder is None) == (config is None):
        wanted, got = "either a student folder or the config of an untrained student", "both" if folder else "neither"
        raise UserError("contradiction", wanted=wanted, got=got, next_step="give exactly one of the two")
    if folder is not None:
        return load_model(folder, machine), Tokenizer.load(folder)
    assert config is not None
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    model: Any = initial_model(config, tokenizer)
    return model.to(machine.torch_device), tokenizer
