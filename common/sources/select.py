"""Which files of a repository a data set means: by the patterns of the recipe, by the card, or by their paths.

The card is the YAML header of the repository's README.md; its `configs` are read as the library `datasets` reads them,
and a mapping of split to pattern is taken as well. A repository is whatever has a card and a listing: this module does
not know whether that is the hub or a folder.
"""

import difflib
import posixpath
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

from common.errors import UserError
from common.rows import SUFFIXES
from common.sources.names import HubDataset

CARD_FILE = "README.md"
_DEFAULT_SPLIT = "train"
# A file that names one of these is no training text by default.
_OTHER_SPLITS = ("validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation")
_ENCRYPTED_SUFFIX = ".jsonl.gz.gpg"  # taken only where a pattern names it: its reader needs a key
_MOST_NAMED = 10
_LICENCE_TEXT = re.compile(
    r"(licen[cs]e|notice|use_policy|gemma_terms|terms_of_use|(dataset_licen[cs]e_)?agreement)([-_.].*)?$", re.IGNORECASE
)

Configs = dict[str, dict[str, Any]]


class Repository(Protocol):
    """The files of a data set or a model, wherever they are."""

    @property
    def place(self) -> str:
        """What errors call it."""
        ...

    def text(self, name: str) -> str:
        """What a small file of it holds, "" where there is no such file."""
        ...

    def sizes_bytes(self, folder: str) -> dict[str, int]:
        """Every file under `folder` ("" = all), by its path inside the repository; {} where there is no such folder."""
        ...


def choose(dataset: HubDataset, repository: Repository) -> dict[str, int]:
    """The files that `dataset` means, sorted by path, with their sizes in bytes.

    Raises:
        UserError: there are none, or it is not clear which; what there is instead is listed.
    """
    if dataset.files:
        return _named_by_recipe(dataset, repository)
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
        there = f"configs {few(configs)}" if configs else f"data files {few(sizes)}"
        raise UserError(
            wanted=f"files of {_label(dataset)} in {repository.place}, named {', '.join(SUFFIXES)}",
            got=f"none; there are the {there}",
            next_step="correct config or split, or name the files with `files`",
        )
    return {name: sizes[name] for name in _of_one_kind(sorted(found), dataset, repository.place)}


def is_licence_text(name: str) -> bool:
    """Whether a file of a repository is a licence, a notice or terms of use."""
    return "/" not in name and _LICENCE_TEXT.match(name) is not None


def matches(name: str, pattern: str) -> bool:
    """Whether a path fits a pattern: `*` and `?` stay within a folder, `**` as a whole component crosses folders."""
    from fsspec.utils import glob_translate  # the hub's own library reads patterns with it

    try:
        return re.match(glob_translate(pattern), name) is not None
    except ValueError as error:
        raise UserError(
            wanted="`**` as a whole folder of a pattern, such as data/**/*.parquet",
            got=repr(pattern),
            next_step="correct the pattern",
        ) from error


def _named_by_recipe(dataset: HubDataset, repository: Repository) -> dict[str, int]:
    sizes = visible(repository.sizes_bytes(_common_folder(dataset.files)))
    chosen: set[str] = set()
    for pattern in dataset.files:
        found = [name for name in sizes if matches(name, pattern)]
        if not found:
            raise UserError(
                wanted=f"files {pattern} in {repository.place}",
                got=f"none; there are {few(sizes)}",
                next_step="correct `files`",
            )
        chosen.update(found)
    unreadable = [name for name in sorted(chosen) if not name.endswith((*SUFFIXES, _ENCRYPTED_SUFFIX))]
    if unreadable:
        raise UserError(
            wanted=f"files named {', '.join(SUFFIXES)}",
            got=f"{few(unreadable)} in {repository.place}",
            next_step="narrow `files` to the data",
        )
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
        raise UserError(
            wanted=f"a {CARD_FILE} whose YAML header lists `configs`, each with a `config_name`, in {repository.place}",
            got=f"one that does not read so ({type(error).__name__})",
            next_step="name the files with `files`",
        ) from error


def _pick_config(dataset: HubDataset, configs: Configs, place: str) -> dict[str, Any]:
    """The card's entry for the data set's config, or for its default; {} where the card lists none at all."""
    if not configs:
        return {}
    if dataset.config is None:
        default = [name for name, entry in configs.items() if entry.get("default")]
        default += [name for name in configs if name == "default" or len(configs) == 1]
        wanted = default[0] if default else None
    else:
        wanted = dataset.config if dataset.config in configs else None
    if wanted is None:
        raise UserError(
            wanted=f"a config of {place}" if dataset.config is None else f"the config {dataset.config} of {place}",
            got=f"{'none named' if dataset.config is None else 'no such config'}; there are {few(configs, dataset)}",
            next_step="name one of its configs",
        )
    return configs[wanted]


def _split_patterns(data_files: Any, split: str, place: str) -> list[str] | None:
    """The patterns that a card's `data_files` gives for one split; None where it gives no files at all.

    Patterns that stand without a split are the training split's.
    """
    match data_files:
        case None:
            return None
        case str():
            by_split = {_DEFAULT_SPLIT: [data_files]}
        case Mapping():
            entries = cast(Mapping[str, Any], data_files)
            by_split = {str(name): _as_list(paths) for name, paths in entries.items()}
        case list():
            by_split: dict[str, list[Any]] = {}
            for item in cast(list[Any], data_files):
                entry: Any = {"split": _DEFAULT_SPLIT, "path": item} if isinstance(item, str) else item
                whole = isinstance(entry, Mapping) and {"split", "path"} <= set(cast(Mapping[str, Any], entry))
                by_split.setdefault(str(entry["split"]) if whole else "", []).extend(
                    _as_list(entry["path"]) if whole else [item]
                )
        case _:
            by_split = {"": [data_files]}
    if not all(isinstance(path, str) and "://" not in path for paths in by_split.values() for path in paths):
        raise UserError(
            wanted=f"`data_files` of the card of {place} as patterns, or as entries of split and path",
            got=repr(data_files)[:200],
            next_step="name the files with `files`",
        )
    return by_split.get(split, [])


def _as_list(paths: Any) -> list[Any]:
    return list(cast(list[Any], paths)) if isinstance(paths, list) else [paths]


def _by_path(names: Iterable[str], config: str | None, split: str) -> list[str]:
    """The files whose path says config and split; the config as a folder where there is one, else in the file's name.

    Files that name no split at all are the training split's.
    """
    inside = list(names)
    if config not in (None, "default"):
        in_folder = [name for name in inside if config in name.split("/")[:-1]]
        inside = in_folder or [name for name in inside if _has_word(posixpath.basename(name), config)]
    found = [name for name in inside if _says_split(name, split)]
    if found or split != _DEFAULT_SPLIT:
        return found
    return [name for name in inside if not any(_says_split(name, other) for other in _OTHER_SPLITS)]


def _says_split(name: str, split: str) -> bool:
    return any(_has_word(part, split) for part in name.split("/"))


def _has_word(part: str, word: str) -> bool:
    """Whether `word` stands in the name of a file or folder between its ends, `-`, `_`, `.`, blanks and digits."""
    return re.search(rf"(?<![^-_. \d]){re.escape(word)}(?![^-_. \d])", part) is not None


def _of_one_kind(names: list[str], dataset: HubDataset, place: str) -> list[str]:
    """The same rows often lie there in two formats: taken together, each would count twice."""
    kinds = {suffix for suffix in SUFFIXES if any(name.endswith(suffix) for name in names)}
    if len(kinds) > 1:
        kinds.discard(".txt")  # a licence or a list beside the data
    if len(kinds) > 1:
        raise UserError(
            wanted=f"files of one kind for {_label(dataset)} in {place}",
            got=f"{' and '.join(sorted(kinds))}: {few(names)}",
            next_step="name the files with `files`",
        )
    return [name for name in names if name.endswith(tuple(kinds))]


def visible(sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes by path without what is hidden: a download by the hub's own tools leaves `.cache` in its folder."""
    return {name: size for name, size in sizes.items() if not any(part.startswith(".") for part in name.split("/"))}


def _readable(sizes: Mapping[str, int]) -> dict[str, int]:
    return {name: size for name, size in visible(sizes).items() if name.endswith(SUFFIXES)}


def _common_folder(patterns: Sequence[str]) -> str:
    """The folder under which all matches lie: a listing of thousands of folders is many requests to the hub."""
    fixed = [re.split(r"[*?\[]", pattern, maxsplit=1)[0] for pattern in patterns]
    return posixpath.commonpath([posixpath.dirname(prefix) for prefix in fixed])


def _label(dataset: HubDataset) -> str:
    return f"{dataset.name}{'' if dataset.config is None else ':' + dataset.config}, split {dataset.split}"


def few(names: Collection[str], dataset: HubDataset | None = None) -> str:
    """At most ten names, those nearest to the config that was asked for first."""
    config = None if dataset is None else dataset.config
    first = sorted(names) if config is None else difflib.get_close_matches(config, names, n=_MOST_NAMED, cutoff=0.0)
    shown = ", ".join(first[:_MOST_NAMED]) or "none"
    return shown if len(names) <= _MOST_NAMED else f"{shown} and {len(names) - _MOST_NAMED} more"
