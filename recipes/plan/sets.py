"""What a recipe takes from publishers: sizes of data sets, downloads, gates and licences. It sends no request.

Sizes come from the folder in the place of the hub, from the lock of a build that has asked the hub, or from
`common.known_sets`, each with its basis. What none of them has stays unknown.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from common.disk import files_under
from common.errors import UserError
from common.known_sets import known_set, known_size
from common.rows import SUFFIXES
from common.sources import LOCK_FILE, HubDataset, HubFiles, resolve
from distill.corpus import TextSource
from instruct.conversations import ConversationSource
from instruct.conversations.lmsys import PASSPHRASE_VARIABLE

TOKEN_VARIABLE = "HF_TOKEN"
TEXT_IN_A_BYTE = {".parquet": 2.7, ".gz": 3.0, ".gpg": 3.0, ".zst": 3.3}
"""Bytes of text in UTF-8 that a byte of a file holds, at most, by its suffix; of others one. Measured on Japanese
Wikipedia and Aozora Bunko as Parquet (1.7 and 1.8 by snappy, 2.3 and 2.6 by zstd) and as gzip (2.7 and 2.9); that of
.zst is assumed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Download:
    """Files of one model or data set."""

    name: str
    bytes: int | None
    """None where the hub was not asked yet."""
    how: str
    """Where the figure is from, or when it will be known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """A set that its publisher gives only to users who have accepted its terms, or only encrypted."""

    name: str
    why: str
    variable: str
    """Environment variable that opens it."""

    @property
    def is_open(self) -> bool:
        """Whether the variable is set; whether its value is right shows when it is used."""
        return bool(os.environ.get(self.variable, "").strip())


@dataclass(frozen=True, kw_only=True, slots=True)
class SetSize:
    """What is known of the size of a set."""

    name: str
    """`org/name` or `org/name:config`; of a user's file its name."""
    bytes: int | None
    """Of the files that are taken; None where the hub was not asked yet."""
    how: str
    """Where the figure is from, or when it will be known."""
    text_bytes: int | None = None
    """Of the text inside, at most."""
    file_bytes: int = 0
    """Of one file: those of the hub are fetched one at a time."""
    fetched: bool = True
    """Whether its files come from the hub."""


Source = TextSource | ConversationSource


def size_of(source: Source | HubDataset | Path, *, build_folder: Path | None, sources: Path | None) -> SetSize:
    """What is known of the size of a set, or of a user's file.

    Args:
        source: where the data are from.
        build_folder: folder of a lock.
        sources: the folder in the place of the hub, or None.
    """
    if isinstance(source, Path):
        return _sized(source.name, {source.name: source.stat().st_size}, "your own file", fetched=False)
    found = source if isinstance(source, HubDataset) else source.files
    limit = source.max_files if isinstance(source, TextSource) else None
    if isinstance(found, HubFiles):
        sizes = dict.fromkeys(found.files, found.bytes // max(len(found.files), 1))
        return _sized(_name(found.name, found.config), sizes, f"{len(sizes)} files, as the hub lists them")
    if not isinstance(found, HubDataset):
        sizes = {path.name: path.stat().st_size for path in found}
        name = source.terms.name if isinstance(source, TextSource) else getattr(source, "name", "files")
        return _sized(name, sizes, f"{len(sizes)} local files", fetched=False)
    name = _name(found.name, found.config)
    if sources is not None:
        local = _local_sizes(found, limit, sources, is_text=isinstance(source, TextSource))
        if local is None:
            return SetSize(name=name, bytes=None, how="not in SOURCES", fetched=False)
        return _sized(name, local, f"{len(local)} files of SOURCES", fetched=False)
    entry = next((one for key, one in _lock(build_folder).items() if _is_of(key, found, limit)), None)
    if entry is not None and entry.get("from") == "hub":
        total, names = int(entry["files"]["bytes"]), entry["files"]["files"]
        return _sized(name, dict.fromkeys(names, total // len(names)), f"{len(names)} files, as the hub lists them")
    return _listed(name, limit)


def gates_of(sources: Sequence[Source], *, sources_folder: Path | None) -> tuple[Gate, ...]:
    """The gates before sets of conversations. A folder of SOURCES that holds a set as conversations needs none."""
    found: list[Gate] = []
    for name, original in _originals(sources):
        if sources_folder is None:
            why = f"the instructions of {name} derive from it"
            found.append(Gate(name=original, why=why, variable=TOKEN_VARIABLE))
        if sources_folder is None or _is_encrypted(name, sources_folder / name):
            found.append(Gate(name=name, why="its instructions are encrypted", variable=PASSPHRASE_VARIABLE))
    return tuple(found)


def originals_of(sources: Sequence[Source]) -> list[HubDataset]:
    """The gated set behind each set of conversations that has one."""
    return [HubDataset(name=original) for _, original in _originals(sources)]


def _name(name: str, config: str | None) -> str:
    return name if config is None else f"{name}:{config}"


def _originals(sources: Sequence[Source]) -> Iterator[tuple[str, str]]:
    for source in sources:
        known = known_set(source.name) if isinstance(source, ConversationSource) else None
        if known is not None and known.original is not None:
            yield known.name, known.original


def _is_encrypted(name: str, folder: Path) -> bool:
    """Whether a local copy holds the encrypted file and nothing that was made of it."""
    known = known_set(name)
    is_readable = known is not None and known.local_patterns(folder) != ()
    return not is_readable and any(folder.rglob("*.gpg"))


def _sized(name: str, sizes: Mapping[str, int], how: str, *, fetched: bool = True) -> SetSize:
    text = sum(size * TEXT_IN_A_BYTE.get(PurePosixPath(file).suffix, 1.0) for file, size in sizes.items())
    return SetSize(
        name=name,
        bytes=sum(sizes.values()),
        how=how,
        text_bytes=round(text),
        file_bytes=max(sizes.values(), default=0) if fetched else 0,
        fetched=fetched,
    )


def _listed(name: str, limit: int | None) -> SetSize:
    """By the registry of known sets."""
    known = known_size(name)
    first = "" if limit is None else f"first {limit} files; "
    if known is None or (known.bytes is None and limit is None):
        return SetSize(name=name, bytes=None, how=f"{first}asked when the build starts")
    total = known.bytes if known.bytes is not None else (known.file_bytes or 0) * (limit or 1)
    sized = _sized(name, {f"all{known.ending}": total}, f"{first}{known.basis}")
    return replace(sized, text_bytes=known.text_bytes or sized.text_bytes, file_bytes=known.file_bytes or total)


def _local_sizes(dataset: HubDataset, limit: int | None, sources: Path, *, is_text: bool) -> dict[str, int] | None:
    """Sizes by name of local files; of conversations all that may be data, since only their reader knows which are."""
    folder = sources / dataset.name
    if not folder.is_dir():
        return None
    if not is_text:
        found = [path for path in files_under(folder) if path.name.endswith((*SUFFIXES, ".gpg"))]
    else:
        try:
            local = resolve(dataset, sources=sources, max_files=limit)
        except UserError:  # the build reports it
            return None
        assert isinstance(local, tuple)
        found = list(local)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}


def _is_of(entry_name: str, dataset: HubDataset, max_files: int | None) -> bool:
    """Whether an entry of a lock is this set's; the files of a set of conversations follow its name there."""
    if not entry_name.startswith("dataset "):
        return False
    named = entry_name.removeprefix("dataset ").split(" ")[0].split("@")[0]
    first = re.search(r" first (\d+) files$", entry_name)
    return (
        named in (_name(dataset.name, dataset.config), dataset.name) and (int(first[1]) if first else None) == max_files
    )


def _lock(build_folder: Path | None) -> dict[str, Any]:
    """What a build has resolved; a file that cannot be parsed is the build's own error and nothing to a plan."""
    if build_folder is None:
        return {}
    try:
        read: dict[str, Any] = json.loads((build_folder / LOCK_FILE).read_text(encoding="utf-8"))["sources"]
        return {name: entry for name, entry in read.items() if entry["from"] != "hub" or entry["files"]["files"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
