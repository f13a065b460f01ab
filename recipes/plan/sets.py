"""What a recipe takes from publishers: sizes of data sets, and gates. No request is sent.

Sizes come from the files that a name was resolved to, on the hub or in the folder in its place, else from
`common.known_sets`, each with its basis. What neither has stays unknown.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from common.errors import UserError
from common.known_sets import known_set, known_size
from common.sources import HubFiles, resolve
from distill.corpus import TextSource
from instruct.conversations import ConversationSource
from instruct.conversations.lmsys import PASSPHRASE_VARIABLE
from instruct.conversations.published import published_source

TOKEN_VARIABLE = "HF_TOKEN"
TEXT_IN_A_BYTE = {".parquet": 2.7, ".gz": 3.0, ".gpg": 3.0, ".zst": 3.3}
"""Bytes of text in UTF-8 that a byte of a file holds, at most, by its suffix; of others one. Measured on Japanese
Wikipedia and Aozora Bunko as Parquet (1.7 and 1.8 by snappy, 2.3 and 2.6 by zstd) and as gzip (2.7 and 2.9); that of
.zst is assumed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """A set that only users who have accepted its terms get, or only encrypted; the environment `variable` opens it."""

    name: str
    why: str
    variable: str

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


def size_of(source: Source | Path, *, mirror: Path | None) -> Size:
    """What is known of the size of a set, resolved or not, or of a user's file; `mirror` replaces the hub."""
    if isinstance(source, Path):
        return _local(source.name, [source], "your own file")
    named, limit = source.files, source.max_files if isinstance(source, TextSource) else None
    if isinstance(named, tuple):
        return _local(source.terms.name if source.terms else "conversations", named, f"{len(named)} local files")
    name = named.name if named.config is None else f"{named.name}:{named.config}"
    if isinstance(named, HubFiles):
        return _on_hub(name, named)
    if mirror is None:
        return _registered(name, limit)
    try:
        if isinstance(source, TextSource):
            found = resolve(named, sources=mirror, max_files=limit)
        else:
            found = published_source(named, sources=mirror).found
    except UserError:  # the build reports it
        return Size(name=name, bytes=None, how="not in SOURCES", is_fetched=False)
    assert isinstance(found, tuple)
    return _local(name, found, f"{len(found)} files of SOURCES")


def originals_of(sources: Sequence[Source]) -> Iterator[tuple[str, Size]]:
    """Of each set of conversations that derives from a gated set, its name and the size of the gated one."""
    for source in sources:
        if isinstance(source, ConversationSource) and (known := known_set(source.name)) and known.original:
            name, listed = known.original, source.original
            yield known.name, _on_hub(name, listed) if isinstance(listed, HubFiles) else _registered(name, None)


def gates_of(sources: Sequence[Source], *, mirror: Path | None) -> tuple[Gate, ...]:
    """The gates before sets of conversations. A folder `mirror` that holds a set as conversations needs none."""
    found: list[Gate] = []
    for name, original in originals_of(sources):
        if mirror is None:
            why = f"the instructions of {name} derive from it"
            found.append(Gate(name=original.name, why=why, variable=TOKEN_VARIABLE))
        if mirror is None or _is_encrypted(name, mirror / name):
            found.append(Gate(name=name, why="its instructions are encrypted", variable=PASSPHRASE_VARIABLE))
    return tuple(found)


def _is_encrypted(name: str, folder: Path) -> bool:
    """Whether a local copy holds the encrypted file and nothing that was made of it."""
    known = known_set(name)
    return not (known and known.local_patterns(folder)) and any(folder.rglob("*.gpg"))


def _sized(name: str, sizes: Mapping[str, int], how: str) -> Size:
    text = sum(size * TEXT_IN_A_BYTE.get(PurePosixPath(file).suffix, 1.0) for file, size in sizes.items())
    largest = max(sizes.values(), default=0)
    return Size(name=name, bytes=sum(sizes.values()), how=how, text_bytes=round(text), file_bytes=largest)


def _local(name: str, files: Sequence[Path], how: str) -> Size:
    sizes = {str(path): path.stat().st_size for path in files if path.is_file()}
    return replace(_sized(name, sizes, how), file_bytes=0, is_fetched=False)


def _on_hub(name: str, files: HubFiles) -> Size:
    each = files.bytes // max(len(files.files), 1)
    return _sized(name, dict.fromkeys(files.files, each), f"{len(files.files)} files, as the hub lists them")


def _registered(name: str, limit: int | None) -> Size:
    known, first = known_size(name), "" if limit is None else f"first {limit} files; "
    if known is None or (known.bytes is None and limit is None):
        return Size(name=name, bytes=None, how=f"{first}asked when the build starts")
    total = known.bytes if known.bytes is not None else (known.file_bytes or 0) * (limit or 1)
    sized = _sized(name, {f"all{known.ending}": total}, f"{first}{known.basis}")
    return replace(sized, text_bytes=known.text_bytes or sized.text_bytes, file_bytes=known.file_bytes or total)
