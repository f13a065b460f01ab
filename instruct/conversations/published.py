"""The instruction sets that are known by name, as their publishers ship them: which files, and under which terms.

    source = published_source(HubDataset(name="llm-jp/magpie-sft-v1.0"), sources=None)

What stands about a set in `published.toml` was read at its publisher's; a set that is not there is given as files. It
reads no row and downloads nothing: names become `ConversationSource`s, and `common.sources` knows the hub.
"""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, cast

from common.errors import UserError
from common.provenance import Terms
from common.sources import Found, HubDataset, HubFiles, resolve
from instruct.conversations.layouts import ConversationSource
from instruct.conversations.lmsys import is_joined

_REGISTRY_FILE = Path(__file__).with_name("published.toml")


def known_sets() -> list[str]:
    """Names of all sets, with their parts."""
    names: list[str] = []
    for name, entry in _registry().items():
        files = entry.get("files")
        names += [f"{name}:{part}" for part in files] if isinstance(files, Mapping) else [name]
    return names


def terms_of(name: str) -> Terms:
    """The terms of a set, `org/name` or `org/name:part`.

    Raises:
        UserError: no such set.
    """
    entry = _entry(name.partition(":")[0])
    return Terms(
        name=name,
        licence=entry.get("licence"),
        url=entry.get("url"),
        attribution=entry.get("attribution"),
        obligations=tuple(entry.get("obligations", ())),
    )


Find = Callable[[HubDataset], Found]
"""From a data set's name to its files."""


def published_source(
    dataset: HubDataset, *, sources: Path | None, weight: float | None = None, find: Find | None = None
) -> ConversationSource:
    """A set as a source of conversations, its files found.

    Args:
        dataset: name, part (as `config`) and revision; patterns in `files` overrule the registry's.
        sources: the folder DIR of SOURCES=DIR, or None for the hub.
        weight: see ConversationSource.
        find: what finds files, in the place of `common.sources.resolve` with these `sources`.

    Raises:
        UserError: an unknown set or part, or files that are not there or may not be read.
    """
    entry = _entry(dataset.name)
    dataset = _with_part(dataset, entry)
    name = dataset.name if dataset.config is None else f"{dataset.name}:{dataset.config}"
    if not dataset.files:
        patterns = _patterns(entry, dataset, sources)
        # The part chose the patterns; where there are none, the set's own card knows its parts.
        dataset = replace(dataset, files=patterns)
    find = find or partial(resolve, sources=sources)
    files = find(dataset)
    kind: Literal["auto", "lmsys"] = "lmsys" if entry.get("kind") == "lmsys" else "auto"
    needed = kind == "lmsys" and (isinstance(files, HubFiles) or not is_joined(files))
    return ConversationSource(
        name=name,
        kind=kind,
        files=files,
        original=_original(entry, sources, find) if needed else (),
        weight=weight,
        terms=terms_of(name),
        quotable=entry.get("quotable", True),
    )


def original_of(name: str) -> str | None:
    """The gated set `org/name` whose conversations a known set's answers belong to; None where there is none."""
    return _entry(name).get("original")


def _with_part(dataset: HubDataset, entry: Mapping[str, Any]) -> HubDataset:
    files = entry.get("files")
    if not isinstance(files, Mapping):
        return dataset
    parts = cast(Mapping[str, Any], files)
    part = dataset.config or entry.get("default_part")
    if part not in parts:
        raise UserError(
            wanted=f"a part of {dataset.name}: {', '.join(parts)}", got=str(part), next_step="Name one of these."
        )
    return replace(dataset, config=part)


def _patterns(entry: Mapping[str, Any], dataset: HubDataset, sources: Path | None) -> tuple[str, ...]:
    files: Any = entry.get("files", ())
    usual = files[dataset.config] if isinstance(files, Mapping) else files
    return _found_locally(entry.get("local_files", ()), dataset.name, sources) or tuple(usual)


def _found_locally(alternatives: Sequence[Sequence[str]], name: str, sources: Path | None) -> tuple[str, ...]:
    """The first alternative of which every pattern has a file in the local folder; () where there is none."""
    if sources is None:
        return ()
    folder = sources / name
    for patterns in alternatives:
        if all(any(path.is_file() for path in folder.glob(pattern)) for pattern in patterns):
            return tuple(patterns)
    return ()


def _original(entry: Mapping[str, Any], sources: Path | None, find: Find) -> Found:
    """The gated set that the answers belong to, as the user may read it."""
    name = entry["original"]
    patterns = _found_locally(entry["local_original_files"], name, sources) or tuple(entry["original_files"])
    try:
        return find(HubDataset(name=name, files=patterns))
    except UserError as error:
        raise UserError(
            wanted=f"your own copy of {name}, from which the instructions of {entry['name']} derive",
            got=error.got,
            next_step=f"Accept the terms of {name} with your own account; then {error.next_step}",
        ) from error


def _entry(name: str) -> dict[str, Any]:
    registry = _registry()
    if name not in registry:
        raise UserError(
            wanted=f"one of the known sets {', '.join(known_sets())}",
            got=name,
            next_step="Name one of these, or download the set and name its files.",
        )
    return registry[name]


@cache
def _registry() -> dict[str, dict[str, Any]]:
    content = tomllib.loads(_REGISTRY_FILE.read_text(encoding="utf-8"))
    return {entry["name"]: entry for entry in content["set"]}
