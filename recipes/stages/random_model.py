"""The stage `random_model`: a model folder of any shape with random weights, for a rehearsal without a download.

The cost of an export or a measurement depends on shapes and not on the values of weights. Each block is one shard and
is freed once it is written, so peak memory is that of the largest shard, the embedding.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from common.checkpoint import new_model
from common.errors import UserError, require_above, require_below
from common.metrics import progress
from common.sources.select import INDEX_FILE
from common.store import Workspace, stage
from common.tokenizer import Tokenizer
from distill.initial import InitConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPE = torch.bfloat16
"""Of the weights, as in the published student."""
_SLAB = 2**24  # random numbers drawn at once


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomModelConfig:
    """Shape, seed and standard deviation of the weights."""

    init: InitConfig
    """Shape and seed; without previous-token heads."""
    standard_deviation: float = 0.02
    """Of matrices and biases, as in transformers' initialisation of Qwen2; norms are 1."""

    def __post_init__(self) -> None:
        if self.init.previous_token_heads:
            wanted, got = "a random model without previous-token heads", f"{self.init.previous_token_heads} of them"
            raise UserError("contradiction", wanted=wanted, got=got, next_step="set previous_token_heads to 0")
        require_above(0, standard_deviation=self.standard_deviation)
        require_below(math.inf, standard_deviation=self.standard_deviation)


@stage(version=2)
def random_model(config: RandomModelConfig, workspace: Workspace, tokenizer: Path) -> dict[str, Any]:
    """Write the model folder in bfloat16, and the tokenizer. The same config gives the same bytes.

    UserError for fewer logits than the tokenizer has ids, or a config that transformers refuses.
    """
    loaded = Tokenizer.load(tokenizer)
    config.init.require_logits(loaded)
    with torch.device("meta"):  # shapes without memory
        model = new_model(config.init.fields())
    # Parameters and not state_dict, which has a tied head twice.
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    _write_weights(config, shapes, workspace.folder)
    _write_config(model, loaded, workspace.folder)
    loaded.save(workspace.folder)
    return {"parameters": sum(shape.numel() for shape in shapes.values())}


def _write_weights(config: RandomModelConfig, shapes: Mapping[str, torch.Size], folder: Path) -> None:
    generator = torch.Generator().manual_seed(config.init.seed)
    shards = [list(names) for _, names in groupby(shapes, key=_shard)]
    weight_map: dict[str, str] = {}
    for number, names in enumerate(progress(shards, label="random weights", unit="shards"), start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(  # without a variable: a shard is freed before the next one is drawn
            {name: _weights(name, shapes[name], config.standard_deviation, generator) for name in names},
            folder / file,
            metadata={"format": "pt"},
        )
        weight_map |= dict.fromkeys(names, file)
    total = sum(shape.numel() for shape in shapes.values()) * DTYPE.itemsize
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shard(name: str) -> str:
    """The shard of a tensor: its block's, or one of its own outside the blocks."""
    block = re.match(r"model\.layers\.\d+\.", name)
    return block[0] if block else name


def _weights(name: str, shape: torch.Size, deviation: float, generator: torch.Generator) -> Tensor:
    if name.endswith("norm.weight"):
        return torch.ones(shape, dtype=DTYPE)
    weights = torch.empty(shape, dtype=DTYPE)
    # In slabs: the whole tensor drawn in float32 and then rounded would take three times the memory.
    for slab in weights.view(-1).split(_SLAB):
        slab.copy_(torch.randn(len(slab), generator=generator).mul_(deviation))
    return weights


def _write_config(model: "PreTrainedModel", tokenizer: Tokenizer, folder: Path) -> None:
    """`config.json` and `generation_config.json`, as `common.checkpoint.save_model` writes them."""
    from transformers import GenerationConfig

    model.config.architectures = [type(model).__name__]
    model.config.eos_token_id = tokenizer.turn_end_id
    model.config.dtype = str(DTYPE).removeprefix("torch.")
    model.config.save_pretrained(folder)
    GenerationConfig(
        eos_token_id=list(tokenizer.stop_ids), pad_token_id=tokenizer.document_end_id, do_sample=False
    ).save_pretrained(folder)
