"""How much text a recipe takes from publishers, in bytes, before any of it is read.

Sizes come from the folder that stands in for the hub, from the lock of a build that has asked the hub, or from
`common.known_sets`, each with its basis. What none of them knows stays unknown. It asks nobody on the network.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from common.disk import files_under
from common.errors import UserError
from common.known_sets import known_size
from common.rows import SUFFIXES
from common.sources import LOCK_FILE, HubDataset, resolve

TEXT_IN_A_BYTE = {".parquet": 2.7, ".gz": 3.0, ".gpg": 3.0, ".zst": 3.3}
"""Bytes of text in UTF-8 that a byte of a file holds, at most, by its ending; of others one. Measured on Japanese
Wikipedia and Aozora Bunko as Parquet (1.7 and 1.8 by snappy, 2.3 and 2.6 by zstd) and as gzip (2.7 and 2.9); that of
.zst is assumed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TakenSet:
    """A set that a recipe takes."""

    dataset: HubDataset
    max_files: int | None = None
    """Only its first so many files; None takes all."""
    is_text: bool = True
    """Text, or conversations."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SetSize:
    """What is known of a set's size."""

    name: str
    """`org/name` or `org/name:config`."""
    bytes: int | None
    """Of the files that are taken; None where nobody has been asked yet."""
    how: str
    """Where the figure is from, or when it will be known."""
    text_bytes: int | None = None
    """Of the text inside, at most."""
    file_bytes: int = 0
    """Of one file: those of the hub are fetched one at a time."""


def size_of(taken: TakenSet, *, build_folder: Path | None, sources: Path | None) -> SetSize:
    """What is known of a set without asking anybody.

    Args:
        taken: the set.
        build_folder: where a lock may lie.
        sources: the folder that stands in for the hub, or None.
    """
    dataset = taken.dataset
    name = dataset.name if dataset.config is None else f"{dataset.name}:{dataset.config}"
    if sources is not None:
        sizes = _local_sizes(taken, sources)
        if sizes is None:
            return SetSize(name=name, bytes=None, how="not in SOURCES")
        return _sized(name, sizes, f"{len(sizes)} files of SOURCES", fetched=False)
    entry = next((one for key, one in _lock(build_folder).items() if _is_of(key, dataset, taken.max_files)), None)
    if entry is not None and entry.get("from") == "hub":
        total, names = int(entry["files"]["bytes"]), entry["files"]["files"]
        return _sized(name, dict.fromkeys(names, total // len(names)), f"{len(names)} files, as the hub lists them")
    return _listed(name, taken.max_files)


def size_of_file(path: Path) -> SetSize:
    """Of a file of the user's own."""
    return _sized(path.name, {path.name: path.stat().st_size}, "your own file", fetched=False)


def _sized(name: str, sizes: Mapping[str, int], how: str, *, fetched: bool = True) -> SetSize:
    text = sum(size * TEXT_IN_A_BYTE.get(PurePosixPath(file).suffix, 1.0) for file, size in sizes.items())
    return SetSize(
        name=name,
        bytes=sum(sizes.values()),
        how=how,
        text_bytes=round(text),
        file_bytes=max(sizes.values(), default=0) if fetched else 0,
    )


def _listed(name: str, limit: int | None) -> SetSize:
    """By the registry of known sets."""
    known = known_size(name)
    first = "" if limit is None else f"first {limit} files; "
    if known is None or (known.bytes is None and limit is None):
        return SetSize(name=name, bytes=None, how=f"{first}asked when the build starts")
    total = known.bytes if known.bytes is not None else (known.file_bytes or 0) * (limit or 1)
    sized = _sized(name, {f"all{known.ending}": total}, f"{first}{known.basis}")
    return SetSize(
        name=name,
        bytes=total,
        how=sized.how,
        text_bytes=known.text_bytes or sized.text_bytes,
        file_bytes=known.file_bytes or total,
    )


def _local_sizes(taken: TakenSet, sources: Path) -> dict[str, int] | None:
    """Sizes by name of local files; of conversations all that may be data, since only their reader knows which are."""
    folder = sources / taken.dataset.name
    if not folder.is_dir():
        return None
    if not taken.is_text:
        found = [path for path in files_under(folder) if path.name.endswith((*SUFFIXES, ".gpg"))]
    else:
        try:
            local = resolve(taken.dataset, sources=sources, max_files=taken.max_files)
        except UserError:  # for the build to say
            return None
        assert isinstance(local, tuple)
        found = list(local)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}


def _is_of(entry_name: str, dataset: HubDataset, max_files: int | None) -> bool:
    """Whether an entry of a lock is this set's; which of its files a set of conversations means stands behind."""
    if not entry_name.startswith("dataset "):
        return False
    config = "" if dataset.config is None else f":{dataset.config}"
    said = entry_name.removeprefix("dataset ").split(" ")[0].split("@")[0]
    first = re.search(r" first (\d+) files$", entry_name)
    return said in (f"{dataset.name}{config}", dataset.name) and (int(first[1]) if first else None) == max_files


def _lock(build_folder: Path | None) -> dict[str, Any]:
    """What a build has resolved; a file that does not read is the build's own error and nothing to a plan."""
    if build_folder is None:
        return {}
    try:
        read: dict[str, Any] = json.loads((build_folder / LOCK_FILE).read_text(encoding="utf-8"))["sources"]
        return {name: entry for name, entry in read.items() if entry["from"] != "hub" or entry["files"]["files"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
