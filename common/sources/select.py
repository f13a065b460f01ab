"""Which files of a repository a data set or a model means.

For a data set by the recipe's patterns, else by its card, else by the paths. The card is the YAML header of README.md;
its `configs` are read as the library `datasets` reads them, and a mapping of split to patterns is accepted as well. A
model is its config, safetensors, tokenizer and licence texts. Independent of where the repository is.
"""

import difflib
import json
import posixpath
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

from common.errors import UserError, damaged, not_found
from common.rows import SUFFIXES
from common.sources.names import HubDataset

CARD_FILE = "README.md"
INDEX_FILE = "model.safetensors.index.json"
_DEFAULT_SPLIT = "train"
# A file that names one of these is no training text by default.
_OTHER_SPLITS = ("validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation")
_ENCRYPTED_SUFFIX = ".jsonl.gz.gpg"  # taken only where a pattern names it: its reader needs a key
_MOST_NAMED = 10
_LICENCE_TEXT = re.compile(
    r"(licen[cs]e|notice|use_policy|gemma_terms|terms_of_use|(dataset_licen[cs]e_)?agreement)([-_.].*)?$", re.IGNORECASE
)
_MODEL_FILES = (
    *("added_tokens.json", "chat_template.jinja", "config.json", "generation_config.json", "merges.txt", INDEX_FILE),
    *("special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"),
)
_SHARD = re.compile(r".*-(\d{5})-of-(\d{5})\.safetensors")
_NAME_FILES = "name the files with `files`"

Configs = dict[str, dict[str, Any]]


class Repository(Protocol):
    """The files of a data set or a model, on the hub or in a folder."""

    @property
    def place(self) -> str:
        """What errors call it."""
        ...

    def text(self, name: str) -> str:
        """The content of a small file, "" if there is no such file."""
        ...

    def sizes_bytes(self, folder: str) -> dict[str, int]:
        """Every file under `folder` ("" = all), by its path inside the repository; {} if there is no such folder."""
        ...


def choose(dataset: HubDataset, repository: Repository) -> dict[str, int]:
    """The files that `dataset` means, sorted by path, with their sizes in bytes.

    UserError for none or an ambiguous choice; it lists what the repository has instead.
    """
    if dataset.files:
        return _by_recipe(dataset, repository)
    configs = _card_configs(repository)
    config = _pick_config(dataset, configs, repository.place)
    folder = str(config.get("data_dir") or "").strip("/")
    patterns = _split_patterns(config.get("data_files"), dataset.split, repository.place)
    if patterns is None:
        sizes = _readable(repository.sizes_bytes(folder))
        found = _by_path(sizes, None if folder else dataset.config, dataset.split)
    else:
        patterns = [posixpath.normpath(posixpath.join(folder, pattern)) for pattern in patterns]
        sizes = _readable(repository.sizes_bytes(_common_folder(patterns))) if patterns else {}
        found = [name for name in sizes if any(matches(name, pattern) for pattern in patterns)]
    if not found:
        what = f"files of {_label(dataset)} in {repository.place}, named {', '.join(SUFFIXES)}"
        got = f"none; there are the {f'configs {_few(configs)}' if configs else f'data files {_few(sizes)}'}"
        raise not_found(what, got, next_step=f"correct config or split, or {_NAME_FILES}")
    return {name: sizes[name] for name in _of_one_kind(sorted(found), dataset, repository.place)}


def choose_model(repository: Repository) -> dict[str, int]:
    """The files of a model folder (config, safetensors, tokenizer, licence texts), with their sizes in bytes.

    Weights in other formats, and further copies of the weights in subfolders, are left out. UserError ("not-found")
    without config, weights or tokenizer, or without a shard of the weights or their index.
    """
    sizes = {name: size for name, size in _visible(repository.sizes_bytes("")).items() if "/" not in name}
    weights = {name: size for name, size in sizes.items() if name.endswith(".safetensors")}
    missing = [name for name in ("config.json", "tokenizer.json") if name not in sizes]
    missing += [] if weights else ["*.safetensors"]
    if missing:
        what = f"a model folder with config.json, safetensors and tokenizer.json in {repository.place}"
        got = f"none of {', '.join(missing)}; there are {_few(sizes)}"
        raise not_found(what, got, next_step="name a model in this form")
    _require_all_shards(weights, repository.text(INDEX_FILE) if INDEX_FILE in sizes else None, repository.place)
    chosen = (name for name in sorted(sizes) if name in weights or name in _MODEL_FILES or is_licence_text(name))
    return {name: sizes[name] for name in chosen}


def is_licence_text(name: str) -> bool:
    """Whether a file of a repository is a licence, a notice or terms of use."""
    return "/" not in name and _LICENCE_TEXT.match(name) is not None


def matches(name: str, pattern: str) -> bool:
    """Whether a path fits a pattern: `*` and `?` stay within a folder, `**` as a whole component crosses folders."""
    from fsspec.utils import glob_translate  # the hub's own library reads patterns with it

    try:
        return re.match(glob_translate(pattern), name) is not None
    except ValueError as error:
        wanted = "`**` as a whole folder of a pattern, such as data/**/*.parquet"
        raise UserError("wrong-format", wanted=wanted, got=repr(pattern), next_step="correct the pattern") from error


def _require_all_shards(weights: Collection[str], index: str | None, place: str) -> None:
    """The index names each shard, and a shard's name has their number: checked before any is downloaded."""
    shards = [match for match in map(_SHARD.fullmatch, weights) if match is not None]
    numbered = ((match, number) for match in shards for number in range(1, int(match[2]) + 1))
    wanted = {f"{match[0][: match.start(1)]}{number:05d}-of-{match[2]}.safetensors" for match, number in numbered}
    if index is not None:
        try:
            wanted |= set(json.loads(index)["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            got = f"one that cannot be parsed ({type(error).__name__})"
            next_step = "copy it again, or name another model"
            raise damaged(f"an {INDEX_FILE} with `weight_map` in {place}", got, next_step=next_step) from error
    missing = sorted(wanted - set(weights)) + ([INDEX_FILE] if shards and index is None else [])
    if missing:
        what, next_step = f"all shards of the model in {place}, and their index", "copy it, or name another model"
        raise not_found(what, f"no {_few(missing)}", next_step=next_step)


def _by_recipe(dataset: HubDataset, repository: Repository) -> dict[str, int]:
    sizes = _visible(repository.sizes_bytes(_common_folder(dataset.files)))
    chosen: set[str] = set()
    for pattern in dataset.files:
        found = [name for name in sizes if matches(name, pattern)]
        if not found:
            what, got = f"files {pattern} in {repository.place}", f"none; there are {_few(sizes)}"
            raise not_found(what, got, next_step="correct `files`")
        chosen.update(found)
    if unreadable := [name for name in sorted(chosen) if not name.endswith((*SUFFIXES, _ENCRYPTED_SUFFIX))]:
        wanted, got = f"files named {', '.join(SUFFIXES)}", f"{_few(unreadable)} in {repository.place}"
        raise UserError("wrong-format", wanted=wanted, got=got, next_step="narrow `files` to the data")
    return {name: sizes[name] for name in sorted(chosen)}


def _card_configs(repository: Repository) -> Configs:
    """The card's `configs` by name, in the card's order."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK
    from yaml import YAMLError, safe_load

    header = REGEX_YAML_BLOCK.search(repository.text(CARD_FILE))
    try:
        read: Any = (safe_load(header[2]) or {}) if header else {}
        return {str(entry["config_name"]): dict(entry) for entry in read.get("configs") or []}
    except (YAMLError, TypeError, KeyError, ValueError, AttributeError) as error:
        wanted = f"a {CARD_FILE} whose YAML header lists `configs`, each with a `config_name`, in {repository.place}"
        got = f"one that cannot be read so ({type(error).__name__})"
        raise UserError("wrong-format", wanted=wanted, got=got, next_step=_NAME_FILES) from error


def _pick_config(dataset: HubDataset, configs: Configs, place: str) -> dict[str, Any]:
    """The card's entry for the data set's config, or for its default; {} if the card lists no configs."""
    if not configs:
        return {}
    if dataset.config is None:
        what, got = f"a config of {place}", "none named"
        found = [name for name, entry in configs.items() if entry.get("default")]
        found += [name for name in configs if name == "default" or len(configs) == 1]
    else:
        what, got = f"the config {dataset.config} of {place}", "no such config"
        found = [name for name in configs if name == dataset.config]
    if not found:
        got += f"; there are {_few(configs, dataset.config)}"
        raise UserError("unknown-name", wanted=what, got=got, next_step="name one of its configs")
    return configs[found[0]]


def _split_patterns(data_files: Any, split: str, place: str) -> list[str] | None:
    """The patterns that a card's `data_files` gives for one split; None if it gives no files at all.

    Patterns without a split are the training split's.
    """
    match data_files:
        case None:
            return None
        case dict():
            pairs = list(cast(dict[str, Any], data_files).items())
        case list():
            pairs = [_split_and_paths(item) for item in cast(list[Any], data_files)]
        case _:
            pairs = [_split_and_paths(data_files)]
    listed = [(str(name), path) for name, paths in pairs for path in (paths if isinstance(paths, list) else [paths])]
    if not all(isinstance(path, str) and "://" not in path for _, path in listed):
        wanted = f"`data_files` of the card of {place} as patterns, or as entries of split and path"
        raise UserError("wrong-format", wanted=wanted, got=repr(data_files)[:200], next_step=_NAME_FILES)
    return [path for name, path in listed if name == split]


def _split_and_paths(item: Any) -> tuple[Any, Any]:
    match item:
        case str():
            return _DEFAULT_SPLIT, item
        case {"split": split, "path": paths}:
            return split, paths
        case _:
            return "", [item]  # refused by its type


def _by_path(names: Iterable[str], config: str | None, split: str) -> list[str]:
    """The files whose path has config and split; the config as a folder if there is one, else in the file's name.

    Files that name no split at all are the training split's.
    """
    inside = list(names)
    if config not in (None, "default"):
        in_folder = [name for name in inside if config in name.split("/")[:-1]]
        inside = in_folder or [name for name in inside if _has_word(posixpath.basename(name), config)]
    found = [name for name in inside if _names_split(name, split)]
    if found or split != _DEFAULT_SPLIT:
        return found
    return [name for name in inside if not any(_names_split(name, other) for other in _OTHER_SPLITS)]


def _names_split(name: str, split: str) -> bool:
    return any(_has_word(part, split) for part in name.split("/"))


def _has_word(part: str, word: str) -> bool:
    """Whether the name of a file or folder has `word` between its ends, `-`, `_`, `.`, blanks and digits."""
    return re.search(rf"(?<![^-_. \d]){re.escape(word)}(?![^-_. \d])", part) is not None


def _of_one_kind(names: list[str], dataset: HubDataset, place: str) -> list[str]:
    """Repositories often hold the same rows in two formats: taken together, each row would count twice."""
    kinds = {suffix for suffix in SUFFIXES if any(name.endswith(suffix) for name in names)}
    if len(kinds) > 1:
        kinds.discard(".txt")  # a licence or a list next to the data
    if len(kinds) > 1:
        wanted, got = (
            f"files of one kind for {_label(dataset)} in {place}",
            f"{' and '.join(sorted(kinds))}: {_few(names)}",
        )
        raise UserError("contradiction", wanted=wanted, got=got, next_step=_NAME_FILES)
    return [name for name in names if name.endswith(tuple(kinds))]


def _visible(sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes by path without hidden files: a download by the hub's own tools leaves `.cache` in its folder."""
    return {name: size for name, size in sizes.items() if not any(part.startswith(".") for part in name.split("/"))}


def _readable(sizes: Mapping[str, int]) -> dict[str, int]:
    return {name: size for name, size in _visible(sizes).items() if name.endswith(SUFFIXES)}


def _common_folder(patterns: Sequence[str]) -> str:
    """The folder that holds all matches: to list thousands of folders takes many requests to the hub."""
    fixed = [re.split(r"[*?\[]", pattern, maxsplit=1)[0] for pattern in patterns]
    return posixpath.commonpath([posixpath.dirname(prefix) for prefix in fixed])


def _label(dataset: HubDataset) -> str:
    return f"{dataset.name}{'' if dataset.config is None else ':' + dataset.config}, split {dataset.split}"


def _few(names: Collection[str], nearest: str | None = None) -> str:
    """At most ten names, those most like `nearest` first."""
    first = sorted(names) if nearest is None else difflib.get_close_matches(nearest, names, n=_MOST_NAMED, cutoff=0.0)
    shown = ", ".join(first[:_MOST_NAMED]) or "none"
    return shown if len(names) <= _MOST_NAMED else f"{shown} and {len(names) - _MOST_NAMED} more"
