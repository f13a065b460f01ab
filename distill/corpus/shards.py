"""The first pass: sources to cleaned documents on disk, in shards that a killed run does not repeat.

A shard is a run of consecutive rows of one source. Its files are written when it is complete, `.json` last, which also
says where the next one starts. Rows are read here, in order, and cleaned by worker processes; what they give back is
the same for any number of workers.
"""

import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.disk import replace_text
from common.metrics import progress
from common.rows import Raw, RowCounts, printable, raw_rows
from common.sources import HubFiles, fetched
from common.workers import ordered_map
from distill.corpus.config import TextSource
from distill.text.cleaning import Batch, Cleaned, Cleaner, Counts

SHARD_BYTES = 2**25
"""Raw bytes of a shard: what a killed run repeats at most."""
_SHARD_DOCUMENTS = 2**16  # near-duplicates take a kilobyte of each
_BATCH_BYTES = 2**20
_BATCH_ROWS = 2000
_FEW_BYTES = 2**24  # cleaned faster than workers start
_CHECKS_FILE = "checks.u16"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A finished shard."""

    stem: Path
    """Its files are called so, with different endings."""
    source: int
    """Place of its source."""
    documents: int
    """Documents in it."""
    next: tuple[int, int, int]
    """Where the next shard starts: source, file, and number of the last row before it."""
    counts: Counts

    def lines(self) -> Iterator[str]:
        """Its documents, as lines of JSON."""
        with self.stem.with_suffix(".jsonl").open(encoding="utf-8", newline="\n") as file:
            yield from file

    def array(self, name: str) -> NDArray[Any]:
        """`digests` [documents, 2], `characters` [documents], or `band_keys` [bands, documents], mapped from disk."""
        return np.load(self.stem.with_suffix(f".{name}.npy"), mmap_mode="r" if self.documents else None)


@dataclass(kw_only=True, slots=True)
class _Open:
    """The shard that is being filled."""

    source: int
    bytes: int = 0
    next: tuple[int, int, int] = (0, 0, 0)
    cleaned: list[Cleaned] = field(default_factory=list[Cleaned])

    @property
    def is_full(self) -> bool:
        return self.bytes >= SHARD_BYTES or sum(len(one.lines) for one in self.cleaned) >= _SHARD_DOCUMENTS


def write_shards(
    folder: Path,
    sources: Sequence[TextSource],
    cleaner: Cleaner,
    *,
    workers: int,
    max_bad_share: float,
    files: Sequence[tuple[int, int]] | None = None,
) -> list[Shard]:
    """Cleans all sources into `folder`; the shards of an earlier start are kept.

    Args:
        folder: made if absent.
        sources: read in this order.
        cleaner: what is done to each document.
        workers: processes; one where there is little to do.
        max_bad_share: bad rows allowed, as a share of all rows of `files`.
        files: those of `all_files` to read; None reads all.

    Raises:
        UserError: a file is missing, a download fails, or a worker is killed; InputError: a file is damaged, or too
            many rows are bad.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = finished(folder)
    _cut_checks(folder, sum(shard.documents for shard in shards) * cleaner.permutations)
    rows = RowCounts()
    for shard in shards:
        rows.merge(shard.counts.rows)
    filled: _Open | None = None
    start = shards[-1].next if shards else None
    places: deque[tuple[int, tuple[int, int, int], int]] = deque()
    batches = _batches(sources, all_files(sources) if files is None else files, start, folder, places)
    cleaned = ordered_map(cleaner, batches, workers=1 if _are_few(sources) else workers)
    for result in progress(cleaned, label="cleaning", unit="batches"):
        source, following, size = places.popleft()
        rows.merge(result.counts.rows)
        rows.check_early(max_bad_share)
        if filled is not None and (filled.source != source or filled.is_full):
            shards.append(_write(folder, len(shards), filled))
            filled = None
        filled = filled or _Open(source=source)
        filled.cleaned.append(result)
        filled.bytes += size
        filled.next = following
    if filled is not None:
        shards.append(_write(folder, len(shards), filled))
    rows.check(max_bad_share)
    return shards


def finished(folder: Path) -> list[Shard]:
    """The shards that are complete, in order."""
    shards: list[Shard] = []
    for path in sorted(folder.glob("*.json")):
        values = json.loads(path.read_text(encoding="utf-8"))
        counts = Counts.from_json(values.pop("counts"))
        shards.append(Shard(stem=path.with_suffix(""), **values | {"next": tuple(values["next"])}, counts=counts))
    return shards


class CheckingValues:
    """What candidates for near-duplicates are compared by, of all documents of one or more shard folders."""

    def __init__(self, folders: Sequence[Path], documents: Sequence[int], permutations: int) -> None:
        """Opens nothing yet.

        Args:
            folders: shard folders, in the order of their documents.
            documents: how many each holds.
            permutations: values of a document.
        """
        self._files = [folder / _CHECKS_FILE for folder in folders]
        self._ends = np.cumsum(documents)
        self._permutations = permutations

    def __call__(self, documents: NDArray[np.int64]) -> NDArray[np.uint16]:
        """[documents, permutations] of some documents, by their places over all folders."""
        values = np.zeros((len(documents), self._permutations), np.uint16)
        owners = np.searchsorted(self._ends, documents, side="right")
        for owner in np.unique(owners).tolist():
            # Mapped anew each time, so that pages that were read do not pile up in this process.
            mapped = np.memmap(self._files[owner], np.uint16, "r").reshape(-1, self._permutations)
            start = self._ends[owner - 1] if owner else 0
            values[owners == owner] = mapped[documents[owners == owner] - start]
        return values


def all_files(sources: Sequence[TextSource]) -> list[tuple[int, int]]:
    """Every file as (place of its source, place in the source), in order."""
    return [(number, place) for number, source in enumerate(sources) for place in range(source.num_files)]


def _batches(
    sources: Sequence[TextSource],
    files: Sequence[tuple[int, int]],
    start: tuple[int, int, int] | None,
    scratch: Path,
    places: deque[tuple[int, tuple[int, int, int], int]],
) -> Iterator[Batch]:
    """All rows of `files` behind `start` in batches; `places` gets each one's source, its end, and its bytes."""
    for number, place in files:
        if start is not None and (number, place) < start[:2]:
            continue
        source, found = sources[number], sources[number].found
        after = start[2] if start is not None and (number, place) == start[:2] else 0
        with ExitStack() as stack:
            if isinstance(found, HubFiles):
                path = stack.enter_context(fetched(found, found.files[place], scratch / "fetched"))
            else:
                path = found[place]
            for rows, size in _groups(raw_rows(path, after=after), source.text_field):
                places.append((number, (number, place, rows[-1][0]), size))
                yield Batch(
                    source=source.terms.name,
                    file=printable(path.name),
                    rows=rows,
                    japanese=source.japanese,
                    text_field=source.text_field,
                )


def _groups(rows: Iterator[tuple[int, Raw]], text_field: str) -> Iterator[tuple[list[tuple[int, Raw]], int]]:
    """Rows in lists of about a megabyte, and its bytes."""
    group: list[tuple[int, Raw]] = []
    size = 0
    for number, raw in rows:
        group.append((number, raw))
        size += len(raw) if isinstance(raw, bytes) else 3 * len(raw.get(text_field) or "")
        if size >= _BATCH_BYTES or len(group) >= _BATCH_ROWS:
            yield group, size
            group, size = [], 0
    if group:
        yield group, size


def _write(folder: Path, number: int, shard: _Open) -> Shard:
    stem = folder / f"{number:05d}"
    counts = Counts()
    for result in shard.cleaned:
        counts.merge(result.counts)
    with stem.with_suffix(".jsonl").open("w", encoding="utf-8", newline="\n") as file:
        for result in shard.cleaned:
            file.writelines(result.lines)
    np.save(stem.with_suffix(".digests.npy"), np.concatenate([result.digests for result in shard.cleaned]))
    np.save(stem.with_suffix(".characters.npy"), np.concatenate([result.characters for result in shard.cleaned]))
    keys = [result.band_keys for result in shard.cleaned if result.band_keys is not None]
    checks = [result.checks for result in shard.cleaned if result.checks is not None]
    if keys:
        np.save(stem.with_suffix(".band_keys.npy"), np.ascontiguousarray(np.concatenate(keys).T))
    if checks:
        with (folder / _CHECKS_FILE).open("ab") as file:
            file.write(np.concatenate(checks).tobytes())
            file.flush()
            os.fsync(file.fileno())
    documents = sum(len(result.lines) for result in shard.cleaned)
    values = {"source": shard.source, "documents": documents, "next": shard.next}
    replace_text(stem.with_suffix(".json"), json.dumps(values | {"counts": counts.to_json()}, ensure_ascii=False))
    return Shard(stem=stem, source=shard.source, documents=documents, next=shard.next, counts=counts)


def _cut_checks(folder: Path, values: int) -> None:
    """Forgets the checking values of a shard that was not completed."""
    path = folder / _CHECKS_FILE
    if path.is_file():
        with path.open("rb+") as file:
            file.truncate(values * np.dtype(np.uint16).itemsize)


def _are_few(sources: Sequence[TextSource]) -> bool:
    """Whether all files together are small."""
    size = 0
    for source in sources:
        found = source.found
        if isinstance(found, HubFiles):
            return False
        size += sum(path.stat().st_size for path in found if path.is_file())
    return size < _FEW_BYTES
