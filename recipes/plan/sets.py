"""What a recipe takes from publishers: sizes of data sets, downloads, gates and licences. It sends no request.

Sizes come from the folder in the place of the hub, from the lock of a build that has asked the hub, or from
`common.known_sets`, each with its basis. What none of them has stays unknown.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
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
class Size:
    """What is known of the size of a data set, a model or a user's file."""

    name: str
    """`org/name` or `org/name:config`; of a user's file its name."""
    bytes: int | None
    """Of the files that are taken; None where the hub was not asked yet."""
    how: str
    """Where the figure is from, or when it will be known."""
    text_bytes: int | None = None
    """Of the text inside, at most."""
    file_bytes: int = 0
    """Of one file: those of a data set on the hub are fetched one at a time."""
    is_fetched: bool = True
    """Whether it is downloaded."""


Source = TextSource | ConversationSource


def size_of(source: Source | HubDataset | Path, *, build_folder: Path | None, sources: Path | None) -> Size:
    """What is known of the size of a set, or of a user's file.

    Args:
        source: where the data are from.
        build_folder: folder of a lock.
        sources: the folder in the place of the hub, or None.
    """
    if isinstance(source, Path):
        return _sized(source.name, {source.name: source.stat().st_size}, "your own file", is_fetched=False)
    files = source if isinstance(source, HubDataset) else source.files
    is_text, limit = isinstance(source, TextSource), source.max_files if isinstance(source, TextSource) else None
    if isinstance(files, tuple):
        name = source.terms.name if isinstance(source, TextSource) else getattr(source, "name", "files")
        local = {path.name: path.stat().st_size for path in files}
        return _sized(name, local, f"{len(local)} local files", is_fetched=False)
    name = files.name if files.config is None else f"{files.name}:{files.config}"
    if isinstance(files, HubFiles):
        return _on_hub(name, files.bytes, files.files)
    if sources is not None:
        local = _local_sizes(files, limit, sources, is_text=is_text)
        if local is None:
            return Size(name=name, bytes=None, how="not in SOURCES", is_fetched=False)
        return _sized(name, local, f"{len(local)} files of SOURCES", is_fetched=False)
    for entry_name, entry in _lock(build_folder).items():
        if entry.get("from") == "hub" and _is_of(entry_name, files, limit):
            return _on_hub(name, int(entry["files"]["bytes"]), entry["files"]["files"])
    return _registered(name, limit)


def originals_of(sources: Sequence[Source]) -> dict[str, str]:
    """The gated set behind each set of conversations that derives from one."""
    known = [known_set(source.name) for source in sources if isinstance(source, ConversationSource)]
    return {one.name: one.original for one in known if one is not None and one.original is not None}


def gates_of(sources: Sequence[Source], *, mirror: Path | None) -> tuple[Gate, ...]:
    """The gates before sets of conversations. A folder `mirror` that holds a set as conversations needs none."""
    found: list[Gate] = []
    for name, original in originals_of(sources).items():
        if mirror is None:
            why = f"the instructions of {name} derive from it"
            found.append(Gate(name=original, why=why, variable=TOKEN_VARIABLE))
        if mirror is None or _is_encrypted(name, mirror / name):
            found.append(Gate(name=name, why="its instructions are encrypted", variable=PASSPHRASE_VARIABLE))
    return tuple(found)


def _is_encrypted(name: str, folder: Path) -> bool:
    """Whether a local copy holds the encrypted file and nothing that was made of it."""
    known = known_set(name)
    is_readable = known is not None and known.local_patterns(folder) != ()
    return not is_readable and any(folder.rglob("*.gpg"))


def _sized(name: str, sizes: Mapping[str, int], how: str, *, is_fetched: bool = True) -> Size:
    text = sum(size * TEXT_IN_A_BYTE.get(PurePosixPath(file).suffix, 1.0) for file, size in sizes.items())
    return Size(
        name=name,
        bytes=sum(sizes.values()),
        how=how,
        text_bytes=round(text),
        file_bytes=max(sizes.values(), default=0) if is_fetched else 0,
        is_fetched=is_fetched,
    )


def _on_hub(name: str, total: int, files: Sequence[str]) -> Size:
    return _sized(name, dict.fromkeys(files, total // max(len(files), 1)), f"{len(files)} files, as the hub lists them")


def _registered(name: str, limit: int | None) -> Size:
    """By the registry of known sets."""
    known = known_size(name)
    first = "" if limit is None else f"first {limit} files; "
    if known is None or (known.bytes is None and limit is None):
        return Size(name=name, bytes=None, how=f"{first}asked when the build starts")
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
    whole = dataset.name if dataset.config is None else f"{dataset.name}:{dataset.config}"
    return named in (whole, dataset.name) and (int(first[1]) if first else None) == max_files


def _lock(build_folder: Path | None) -> dict[str, Any]:
    """What a build has resolved; a file that cannot be parsed is the build's own error and nothing to a plan."""
    if build_folder is None:
        return {}
    try:
        read: dict[str, Any] = json.loads((build_folder / LOCK_FILE).read_text(encoding="utf-8"))["sources"]
        return {name: entry for name, entry in read.items() if entry["from"] != "hub" or entry["files"]["files"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
