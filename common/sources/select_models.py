"""Which files of a repository are the model: config, safetensors, tokenizer, licence texts, and whether all are there.

A repository is whatever has a listing, as in `choosing`.
"""

import json
import re
from collections.abc import Collection

from common.errors import UserError
from common.sources.select import Repository, few, is_licence_text, visible

INDEX_FILE = "model.safetensors.index.json"
_MODEL_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    INDEX_FILE,
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
_SHARD = re.compile(r".*-(\d{5})-of-(\d{5})\.safetensors")


def choose_model(repository: Repository) -> dict[str, int]:
    """The files of a model folder (config, safetensors, tokenizer, licence texts), with their sizes in bytes.

    Weights in other formats and other copies of the weights, in folders below, are left where they are.

    Raises:
        UserError: config, weights or tokenizer are not there, or not all shards of the weights with their index.
    """
    sizes = {name: size for name, size in visible(repository.sizes_bytes("")).items() if "/" not in name}
    weights = {name: size for name, size in sizes.items() if name.endswith(".safetensors")}
    lacks = [name for name in ("config.json", "tokenizer.json") if name not in sizes]
    lacks += [] if weights else ["*.safetensors"]
    if lacks:
        raise UserError(
            wanted=f"a model folder with config.json, safetensors and tokenizer.json in {repository.place}",
            got=f"none of {', '.join(lacks)}; there are {few(sizes)}",
            next_step="name a model in this form",
        )
    _require_all_shards(weights, repository.text(INDEX_FILE) if INDEX_FILE in sizes else None, repository.place)
    return {
        name: sizes[name] for name in sorted(sizes) if name in weights or name in _MODEL_FILES or is_licence_text(name)
    }


def _require_all_shards(weights: Collection[str], index: str | None, place: str) -> None:
    """The index names each shard, and a shard's own name says how many there are: known before one is downloaded."""
    shards = [match for match in map(_SHARD.fullmatch, weights) if match is not None]
    wanted = {
        f"{match[0][: match.start(1)]}{number:05d}-of-{match[2]}.safetensors"
        for match in shards
        for number in range(1, int(match[2]) + 1)
    }
    if index is not None:
        try:
            wanted |= set(json.loads(index)["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                wanted=f"an {INDEX_FILE} with `weight_map` in {place}",
                got=f"one that does not read ({type(error).__name__})",
                next_step="copy it again, or name another model",
            ) from error
    lacks = sorted(wanted - set(weights)) + ([INDEX_FILE] if shards and index is None else [])
    if lacks:
        raise UserError(
            wanted=f"all shards of the model in {place}, and their index",
            got=f"no {few(lacks)}",
            next_step="copy what is missing, or name another model",
        )
