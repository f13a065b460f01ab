"""The safetensors of a model folder: which file holds each tensor, and which folders are no whole model.

Training, evaluation and export read the same tensors by these rules. Nothing is loaded here but, where the head is said
to be the embedding and is stored as well, these two tensors.
"""

import contextlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from common.errors import UserError, damaged, not_found

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_COPY_AGAIN = "copy or build the model again"


def require_whole_model(folder: Path) -> None:
    """Refuse a folder whose weights are not a whole model's own, before anything is loaded.

    Raises:
        UserError: an adapter (LoRA), quantised weights, or two different tensors for a head and an embedding that
            `tie_word_embeddings` calls one.
    """
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        described = _object(adapter)
        kind, base = described.get("peft_type"), described.get("base_model_name_or_path")
        got = f"an adapter ({kind}, for {base}) in {folder}"
        next_step = "merge it into its base model with peft's merge_and_unload, and save the whole model"
        raise UserError("unsupported", wanted="a whole model", got=got, next_step=next_step)
    config: dict[str, Any] = {}
    with contextlib.suppress(UserError, OSError):  # a config that cannot be read is the reader's own error
        config = _object(folder / "config.json")
    quantised = config.get("quantization_config") or config.get("compression_config")
    if quantised:
        method = quantised.get("quant_method", "an unnamed method") if isinstance(quantised, dict) else quantised
        got = f"weights quantised by {method} in {folder}"
        next_step = "take the model from before its quantisation"
        raise UserError("unsupported", wanted="a model in plain weights", got=got, next_step=next_step)
    if config.get("tie_word_embeddings") is True and any(folder.glob("*.safetensors")):
        _require_one_head(folder)


def _require_one_head(folder: Path) -> None:
    """A tied head that is stored as well may be there if it equals the embedding; else nobody knows which is meant."""
    files = weight_files(folder)
    if HEAD not in files or EMBEDDING not in files:
        return
    tensors: list[torch.Tensor] = []
    for name in (HEAD, EMBEDDING):
        with opened(files[name]) as file:
            tensors.append(file.get_tensor(name))
    if not torch.equal(*tensors):
        wanted, got = f"{HEAD} equal to {EMBEDDING}, since they are tied", f"two different tensors in {folder}"
        next_step = "set tie_word_embeddings to false in config.json, or save the model again"
        raise UserError("contradiction", wanted=wanted, got=got, next_step=next_step)


def weight_files(folder: Path) -> dict[str, Path]:
    """The file that holds each tensor, in transformers' order: `model.safetensors` before an index of shards.

    UserError where neither is there or one cannot be read.
    """
    index, single = folder / _INDEX, folder / _SINGLE
    if index.is_file() and not single.is_file():
        weight_map = _object(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise damaged("a readable index of the shards", f"{index}: no weight_map", next_step=_COPY_AGAIN)
        return {str(name): folder / str(file) for name, file in weight_map.items()}
    with opened(single) as file:
        return dict.fromkeys(file.keys(), single)


def opened(path: Path) -> Any:
    """A safetensors file; UserError where it is absent or cut short."""
    if not path.is_file():
        next_step = "copy the model again; only safetensors are read"
        raise not_found(f"weights in {path.name}", f"none in {path.parent}", next_step=next_step)
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise damaged("a whole safetensors file", f"{path}: {error}", next_step=_COPY_AGAIN) from error


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise damaged(f"a JSON object in {path}", error, next_step=_COPY_AGAIN) from error
    if not isinstance(content, dict):
        raise damaged(f"a JSON object in {path}", type(content).__name__, next_step=_COPY_AGAIN)
    return content
