"""Model folders and training state on disk.

A model folder is what transformers calls a checkpoint: `config.json`, `generation_config.json`, safetensors and the
tokenizer's files. Training state (weights, optimizer, counters) is written by `torch.distributed.checkpoint` into
`scratch/` of the stage's own folder, renamed when complete, and loaded only after its checksums match. Independent of
losses and stages.
"""

import json
import math
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.attention import layout, packed_documents
from common.device import Machine
from common.disk import flush_to_disk, sha256_of
from common.errors import UserError, damaged, not_found
from common.launch import num_processes
from common.optim import Optimizers
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
    with machine.autocast(), packed_documents(model):
        return model.model(
            input_ids=real.tokens_M[None].to(device),
            position_ids=real.positions_M[None].to(device),
            use_cache=False,
            documents=layout(real.lengths, device),
        ).last_hidden_state[0]


def head_weight(model: "PreTrainedModel") -> Tensor:
    """The output head's weight [W, D], the embedding itself where they are tied."""
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear) and head.bias is None
    return head.weight


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingState:
    """With the tensors, everything that a loop needs to go on as if it had never stopped."""

    step: int
    """Optimizer steps done."""
    values: dict[str, Any]
    """Counters and controller state, JSON."""


class CheckpointManager:
    """Training state and best weights of one loop, in `scratch/` of the stage's folder.

    Attributes:
        best_step: optimizer steps of the best weights by validation; -1 before the first validation.
        best_loss: their validation loss.
    """

    def __init__(self, folder: Path, model: nn.Module, optimizers: Optimizers, *, writes: bool = True) -> None:
        """Of several processes one `writes`; all of them resume from what it wrote."""
        self._scratch = folder / "scratch"
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._best_file = self._scratch / "best.safetensors"
        self._model, self._optimizers, self._writes = model, optimizers, writes
        self.best_step, self.best_loss = -1, math.inf

    def _tensors(self) -> dict[str, Tensor]:
        weights = {f"model/{name}": p for name, p in self._model.named_parameters()}
        return {**weights, **{f"optimizer/{k}": v for k, v in self._optimizers.tensors().items()}}

    def resume(self) -> TrainingState | None:
        """Load the newest complete state into model and optimizers; None at a fresh start."""
        state = resume_training(self._scratch, self._tensors())
        if state is not None:
            self.best_step, best_loss = state.values["best_step"], state.values["best_loss"]
            self.best_loss = math.inf if best_loss is None else best_loss
        return state

    def save(self, step: int, values: dict[str, Any]) -> None:
        """Write the state after `step` optimizer steps."""
        if self._writes:
            best = {"best_step": self.best_step, "best_loss": None if math.isinf(self.best_loss) else self.best_loss}
            save_training(self._scratch, self._tensors(), TrainingState(step=step, values={**values, **best}))

    def keep_if_best(self, step: int, validation_loss: float) -> None:
        """Keep the weights if their validation loss is the lowest so far."""
        if validation_loss < self.best_loss:
            self.best_step, self.best_loss = step, validation_loss
            if self._writes:
                partial = self._best_file.with_suffix(".partial")
                save_file({name: p.detach().contiguous() for name, p in self._model.named_parameters()}, partial)
                partial.rename(self._best_file)

    @torch.no_grad()
    def restore_best(self) -> None:
        """Put the best weights back into the model."""
        if self.best_step >= 0:
            best = load_file(self._best_file)
            for name, parameter in self._model.named_parameters():
                parameter.copy_(best[name])


def _checksums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "state.json"
    }


def save_training(scratch: Path, tensors: dict[str, Tensor], state: TrainingState) -> None:
    """Write `scratch/step_<n>/` completely or not at all, then delete the older ones."""
    from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

    target = scratch / f"step_{state.step:06d}"
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_tensors(tensors, checkpoint_id=partial / "tensors", no_dist=True)
    record = {"step": state.step, "values": state.values, "checksums": _checksums(partial)}
    flush_to_disk(partial, without="state.json")
    with open(partial / "state.json", "w", encoding="utf-8") as file:
        json.dump(record, file)
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    for older in scratch.glob("step_*"):
        if older != target:
            shutil.rmtree(older)


def resume_training(scratch: Path, tensors: dict[str, Tensor]) -> TrainingState | None:
    """Load the newest complete state into `tensors`, in place; None where there is none whose checksums match."""
    from torch.distributed.checkpoint.state_dict_loader import load as load_tensors

    for folder in sorted(scratch.glob("step_" + "[0-9]" * 6), reverse=True):
        record_file = folder / "state.json"
        if not record_file.is_file():
            continue
        record = json.loads(record_file.read_text(encoding="utf-8"))
        if _checksums(folder) != record["checksums"]:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_tensors(tensors, checkpoint_id=folder / "tensors", no_dist=True)
        return TrainingState(step=record["step"], values=record["values"])
    return None
