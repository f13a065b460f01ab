"""Reads a Hugging Face model folder tensor by tensor: the input of every exporter.

A `Checkpoint` lists the tensors of a Qwen2, Qwen3 or Llama model in the order embedding, blocks, final norm, head,
whatever the number of safetensors shards, and reads one at a time, so that an export never holds the whole model. It
refuses by name, before any file is written, all that this product cannot export faithfully.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from common.errors import UserError, not_found
from common.weights import EMBEDDING, HEAD, opened, require_whole_model, weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ARCHITECTURES = ("Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM")
ROPE_TYPES = ("default", "linear", "yarn", "llama3")
FINAL_NORM = "model.norm.weight"
_FLOAT_TYPES = ("F32", "F16", "BF16")
SAVE_AGAIN = "save the model again: config.json and the weights differ"


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions: `inverse_frequencies` float32 [head_dim / 2], `attention_factor` multiplies cosine and sine."""

    type: str
    theta: float
    inverse_frequencies: Tensor
    attention_factor: float
    parameters: dict[str, Any]


def check_stem(stem: str) -> None:
    """UserError ("wrong-format") unless `stem` can begin the name of an exported file, `<stem>-<encoding>`."""
    if not stem or stem.startswith(".") or any(sign in stem for sign in "/\\:\0"):
        wanted, next_step = "a stem that can begin a file's name", "use letters, digits and hyphens"
        raise UserError("wrong-format", wanted=wanted, got=repr(stem), next_step=next_step)


class Checkpoint:
    """A model folder opened for reading.

    `config` has its defaults filled in, `architecture` is one of `ARCHITECTURES`, `rows` are those of the embedding, at
    least the tokenizer's size; `tied` says that the head is the embedding.

    Raises:
        UserError: no such model, one of another kind, or with missing, unknown or unreadable tensors.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        require_whole_model(folder)
        self.config: Any = _read_config(folder)
        self.architecture = str((self.config.architectures or ["none"])[0])
        _check_supported(folder, self.config, self.architecture)
        per_head = self.config.hidden_size // self.config.num_attention_heads
        self.head_dim = int(getattr(self.config, "head_dim", None) or per_head)
        self.tied = bool(self.config.tie_word_embeddings)
        self._shards = weight_files(folder)
        self._check_names()
        self.rows = self.shape(EMBEDDING)[0]
        if self.rows != self.config.vocab_size:
            wanted = f"an embedding of vocab_size = {self.config.vocab_size} rows"
            raise UserError("mismatch", wanted=wanted, got=f"{self.rows} rows in {folder}", next_step=SAVE_AGAIN)

    def names(self) -> list[str]:
        """Names of the model's tensors in export order; without the head where it is tied."""
        return list(_expected(self.config, self.architecture, tied=self.tied))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, read from the file's header alone."""
        with opened(self._shards[name]) as shard:
            return tuple(shard.get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """One tensor as it is stored (float32, bfloat16 or float16).

        UserError for a value that float16, which every export goes through, cannot hold.
        """
        with opened(self._shards[name]) as shard:
            value: Tensor = shard.get_tensor(name)
        # Rounding keeps the order, so the two ends decide for all values; and both are NaN where any value is.
        if value.numel() and not bool(torch.isfinite(torch.stack(torch.aminmax(value)).half()).all()):
            got = f"{float(value.float().abs().max())} in {name} of {self.folder}"
            wanted, next_step = "finite weights between -65504 and 65504, float16's range", "rescale this tensor"
            raise UserError("not-finite", wanted=wanted, got=got, next_step=next_step)
        return value

    def rope(self) -> Rope:
        """The rotary embedding, by transformers' own formulas."""
        parameters = dict(self.config.rope_parameters)
        kind, theta = parameters["rope_type"], float(parameters["rope_theta"])
        if kind == "default":
            frequencies, factor = theta ** (-torch.arange(0, self.head_dim, 2).float() / self.head_dim), 1.0
        else:
            from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

            frequencies, factor = ROPE_INIT_FUNCTIONS[kind](self.config, torch.device("cpu"))
        return Rope(kind, theta, inverse_frequencies=frequencies, attention_factor=float(factor), parameters=parameters)

    def _check_names(self) -> None:
        expected = set(self.names())
        stored = {name for name in self._shards if not name.endswith("rotary_emb.inv_freq")}
        missing, unknown = sorted(expected - stored), sorted(stored - expected - ({HEAD} if self.tied else set()))
        if missing or unknown:
            what = f"missing {', '.join(missing[:3])}" if missing else f"unknown {', '.join(unknown[:3])}"
            wanted = f"exactly the {len(expected)} tensors of a {self.architecture} of this config.json"
            got = f"{len(missing)} missing and {len(unknown)} unknown in {self.folder} ({what})"
            raise UserError("mismatch", wanted=wanted, got=got, next_step="merge adapters and use save_pretrained")
        for name in sorted(expected):
            with opened(self._shards[name]) as shard:
                kind = shard.get_slice(name).get_dtype()
            if kind not in _FLOAT_TYPES:
                wanted, got = f"weights in one of {', '.join(_FLOAT_TYPES)}", f"{kind} in {name} of {self.folder}"
                next_step = "export the checkpoint from before its quantisation"
                raise UserError("unsupported", wanted=wanted, got=got, next_step=next_step)


def _read_config(folder: Path) -> "PreTrainedConfig":
    if not (folder / "config.json").is_file():
        next_step = "give the folder that holds config.json, the safetensors and the tokenizer"
        raise not_found("a model folder", f"no config.json in {folder}", next_step=next_step)
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        got = f"{folder}: {str(error).strip().splitlines()[0]}"
        next_step = "check the file; model types that need code of their own are not run"
        raise UserError("wrong-format", wanted="a readable config.json", got=got, next_step=next_step) from error


def _check_supported(folder: Path, config: Any, architecture: str) -> None:
    rope = dict(getattr(config, "rope_parameters", None) or {"rope_type": "none"})
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    activation = getattr(config, "hidden_act", None)
    checks = [
        ("architecture", " or ".join(ARCHITECTURES), architecture, architecture in ARCHITECTURES),
        ("hidden_act", "silu", activation, activation == "silu"),
        ("rope_type", ", ".join(ROPE_TYPES), rope.get("rope_type"), rope.get("rope_type") in ROPE_TYPES),
        ("partial_rotary_factor", "1", rope.get("partial_rotary_factor"), rope.get("partial_rotary_factor", 1) == 1),
        ("truncate of yarn", "true", rope.get("truncate"), rope.get("truncate", True) is True),
        ("attention", "full_attention in all layers", sorted(layer_types), layer_types == {"full_attention"}),
    ]
    for what, wanted, got, supported in checks:
        if not supported:
            found = f"{got} in {folder}/config.json"
            raise UserError("unsupported", wanted=f"{what}: {wanted}", got=found, next_step="export another checkpoint")


def _expected(config: Any, architecture: str, *, tied: bool) -> Iterator[str]:
    attention_bias = architecture == "Qwen2ForCausalLM" or bool(getattr(config, "attention_bias", False))
    output_bias = architecture != "Qwen2ForCausalLM" and attention_bias
    mlp_bias = bool(getattr(config, "mlp_bias", False))
    parts = [("input_layernorm", False)]
    parts += [(f"self_attn.{name}_proj", attention_bias) for name in "qkv"]
    parts += [(f"self_attn.{name}_norm", False) for name in "qk" if architecture == "Qwen3ForCausalLM"]
    parts += [("self_attn.o_proj", output_bias), ("post_attention_layernorm", False)]
    parts += [(f"mlp.{name}_proj", mlp_bias) for name in ("gate", "up", "down")]
    yield EMBEDDING
    for layer in range(config.num_hidden_layers):
        for part, has_bias in parts:
            yield f"model.layers.{layer}.{part}.weight"
            if has_bias:
                yield f"model.layers.{layer}.{part}.bias"
    yield FINAL_NORM
    if not tied:
        yield HEAD
