"""Instruction sets by name, as their publishers ship them: a name on the hub in, a `ConversationSource` out.

    source = published_source(HubDataset(name="llm-jp/magpie-sft-v1.0"), sources=None)

`common.known_sets` has what is known of each set; users give any other set as files. Nothing is downloaded here.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from common.errors import UserError, unknown_name
from common.known_sets import KnownSet, known_set, known_sets, terms_of
from common.sources import Found, HubDataset, HubFiles, resolve
from instruct.conversations.layouts import ConversationSource
from instruct.conversations.lmsys import is_joined

Find = Callable[[HubDataset], Found]
"""From a data set's name to its files."""
_LAYOUTS = ("conversations", "lmsys")


def set_names() -> list[str]:
    """Names of all sets that `published_source` takes, with their parts."""
    taken = (one for one in known_sets() if one.layout in _LAYOUTS)
    return [name for one in taken for name in ([f"{one.name}:{part}" for part in one.parts] or [one.name])]


def hub_conversations(name: str, *, config: str | None = None, weight: float | None = None) -> ConversationSource:
    """A known set, before its files are resolved."""
    dataset = HubDataset(name=name, config=config)
    terms = terms_of(dataset.full_name)
    return ConversationSource(name=terms.name, files=dataset, weight=weight, terms=terms)


def published_source(
    dataset: HubDataset, *, sources: Path | None, weight: float | None = None, find: Find | None = None
) -> ConversationSource:
    """A set as a source of conversations, its files found.

    Args:
        dataset: name, part (as `config`) and revision; patterns in `files` overrule the registry's.
        sources: the folder DIR of SOURCES=DIR, or None for the hub.
        weight: see ConversationSource.
        find: finds files instead of `common.sources.resolve` with these `sources`.

    Raises:
        UserError: an unknown set or part, or files that are not there or may not be read.
    """
    known = known_set(dataset.name)
    if known is None or known.layout not in _LAYOUTS:
        raise unknown_name("one of the known sets (download any other and name its files)", dataset.name, set_names())
    if known.parts:
        dataset = replace(dataset, config=dataset.config or known.default_part)
        if dataset.config not in known.parts:
            raise unknown_name(f"a part of {known.name}", dataset.config, known.parts)
    terms = terms_of(dataset.full_name)
    if not dataset.files:
        dataset = replace(dataset, files=_patterns(known, dataset.config, sources))
    find = find or partial(resolve, sources=sources)
    files = find(dataset)
    is_lmsys = known.layout == "lmsys"
    needs_original = is_lmsys and (isinstance(files, HubFiles) or not is_joined(files))
    return ConversationSource(
        name=terms.name,
        kind="lmsys" if is_lmsys else "auto",
        files=files,
        original=_original(known, sources, find) if needs_original else (),
        weight=weight,
        terms=terms,
    )


def original_of(name: str) -> str | None:
    """The gated set `org/name` from which a known set derives; None where there is none."""
    known = known_set(name)
    return None if known is None else known.original


def _patterns(known: KnownSet, part: str | None, sources: Path | None) -> tuple[str, ...]:
    """Which files of the set to take: those of a local folder as it has them, else as the publisher ships them."""
    local = () if sources is None else known.local_patterns(sources / known.name)
    return local or known.files.get(part or "") or known.files.get("", ())


def _original(known: KnownSet, sources: Path | None, find: Find) -> Found:
    """The files of the gated set from which `known` derives, as the user may read them."""
    original = known_set(known.original or "")
    assert original is not None, f"{known.name} names an original that is not in the registry"
    try:
        return find(HubDataset(name=original.name, files=_patterns(original, None, sources)))
    except UserError as error:
        wanted = f"your own copy of {original.name}, from which the instructions of {known.name} derive"
        next_step = f"accept the terms of {original.name} with your own account; then {error.next_step}"
        raise UserError(error.code, wanted=wanted, got=error.got, next_step=next_step) from error
