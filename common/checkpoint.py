"""Model folders: what transformers calls a checkpoint, with config.json, safetensors and the tokenizer's files.

Independent of losses and stages. The state of a run that goes on later is in `common.training_state`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from common.attention import layout, packed_documents
from common.device import Machine
from common.errors import UserError, damaged, not_found
from common.launch import num_processes
from common.packing import VarlenBatch
from common.tokenizer import Tokenizer
from common.weights import require_whole_model

if TYPE_CHECKING:
    # transformers takes seconds to load, and a command that only reads a finished build does not need it.
    from transformers import PreTrainedModel


def load_model(
    folder: Path, machine: Machine, *, dtype: torch.dtype = torch.float32, spread: bool = False
) -> "PreTrainedModel":
    """Load a causal language model from a Hugging Face folder onto the machine's device, in evaluation mode.

    On an accelerator each weight goes straight to where it computes, and main memory never holds the whole model.
    `spread` puts a model that is not trained over all GPUs of this machine (`spread_map`). UserError for a folder
    without `config.json` or safetensors, and for weights that are incomplete or cannot be read.
    """
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        what, next_step = "a model folder with config.json and safetensors", "name a Hugging Face model folder"
        raise not_found(what, str(folder), next_step=next_step)
    require_whole_model(folder)
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()  # it would interrupt the stages' own lines
    set_verbosity_error()  # and print a table of what is one line below
    device = machine.torch_device
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            attn_implementation="sdpa",
            output_loading_info=True,
            device_map=None if device.type == "cpu" else (spread and spread_map(machine)) or {"": device},
        )
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error):
            wanted, got = f"memory for the model in {folder}, in {dtype}", _first_line(error)
            next_step = "close other programs, or take a smaller model or a machine with more memory"
            raise UserError("no-memory", wanted=wanted, got=got, next_step=next_step) from error
        # safetensors has a class of its own for a truncated file.
        if not isinstance(error, _refusals(OSError, RuntimeError)) and type(error).__name__ != "SafetensorError":
            raise
        next_step = "check that the files are complete and of a supported model type, or copy them again"
        raise damaged("model weights", f"{folder}: {_first_line(error)}", next_step=next_step) from error
    model, report = loaded
    _require_plain_logits(model, folder)
    # transformers fills what it does not find with random numbers and only says so in its log.
    absent = sorted({*report["missing_keys"], *(str(entry[0]) for entry in report["mismatched_keys"])})
    if absent:
        got = f"{len(absent)} missing or of another shape, {absent[0]} the first"
        next_step = "copy the whole folder, config.json and every safetensors file"
        raise damaged(f"all weights of the model in {folder}", got, next_step=next_step)
    return (model.to(device) if model.device.type == "cpu" else model).eval()


def spread_map(machine: Machine) -> str | None:
    """transformers' `device_map` by which accelerate spreads a model over all GPUs, the first one last.

    None where one device or, of several processes, each process has the whole model.
    """
    alone = num_processes() == 1
    return "balanced_low_0" if machine.device == "cuda" and alone and torch.cuda.device_count() > 1 else None


def _require_plain_logits(model: "PreTrainedModel", folder: Path) -> None:
    """Refuse models that scale or cap their logits: ours are the head's product and nothing more."""
    for name in ("logits_scaling", "logit_scale", "final_logit_softcapping"):
        if getattr(model.config, name, None) not in (None, 1, 1.0):
            wanted = "a model whose logits are its head's product, such as Qwen2, Qwen3 or Llama"
            got, next_step = f"{name} {getattr(model.config, name)} in {folder}", "take a model of another family"
            raise UserError("unsupported", wanted=wanted, got=got, next_step=next_step)
    head: Any = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or getattr(head, "bias", None) is not None:
        got = f"{'no linear head' if head is None else 'a head with a bias'} in {folder} ({model.config.model_type})"
        wanted, next_step = "a model with a linear head without a bias", "take a model of another family"
        raise UserError("unsupported", wanted=wanted, got=got, next_step=next_step)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _refusals(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """What transformers raises for a config that it cannot use."""
    from huggingface_hub.errors import StrictDataclassError

    return (KeyError, TypeError, ValueError, AttributeError, StrictDataclassError, *more)


def new_model(config_json: dict[str, Any], *, dtype: torch.dtype = torch.float32) -> "PreTrainedModel":
    """An untrained model from the content of a `config.json`; UserError where transformers refuses it. Seed torch."""
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {key: value for key, value in config_json.items() if key not in ("model_type", "architectures", "dtype")}
    try:
        config = AutoConfig.for_model(config_json["model_type"], **fields)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
        head_weight(model)
    except _refusals(AssertionError, RuntimeError) as error:
        wanted = "a config with a model_type that transformers knows"
        next_step = "start from the config.json of a Qwen2, Qwen3 or Llama model"
        raise UserError("unsupported", wanted=wanted, got=_first_line(error), next_step=next_step) from error
    return model


def save_model(model: "PreTrainedModel", tokenizer: Tokenizer, folder: Path, *, dtype: torch.dtype) -> None:
    """Write a model folder: weights in `dtype`, the tokenizer, and both of its end tokens as stop tokens."""
    from transformers import GenerationConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    # A tied head stays one tensor under two names, of which transformers writes one.
    copies: dict[tuple[int, torch.Size], Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape)
        if place not in copies:
            copies[place] = tensor.detach().to("cpu", dtype)
        state[name] = copies[place]
    model.config.eos_token_id = tokenizer.turn_end_id
    model.config.dtype = str(dtype).removeprefix("torch.")
    model.generation_config = GenerationConfig(
        eos_token_id=list(tokenizer.stop_ids), pad_token_id=tokenizer.document_end_id, do_sample=False
    )
    model.save_pretrained(folder, state_dict=state, safe_serialization=True)
    tokenizer.save(folder)


def hidden_states(model: "PreTrainedModel", real: VarlenBatch, machine: Machine) -> Tensor:
    """Final hidden states [M, D] of a batch; attention stays inside each document."""
    device = machine.torch_device
    documents = layout(real.lengths, device, fill=machine.compiles_shapes)
    filling = (0, len(documents.slot_of_token) - documents.num_real)
    with machine.autocast(), packed_documents(model):
        return model.model(
            input_ids=pad(real.tokens_M, filling)[None].to(device),
            position_ids=pad(real.positions_M, filling)[None].to(device),
            use_cache=False,
            documents=documents,
        ).last_hidden_state[0, : documents.num_real]


def head_weight(model: "PreTrainedModel") -> Tensor:
    """The output head's weight [W, D], the embedding itself where they are tied."""
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear) and head.bias is None
    return head.weight
