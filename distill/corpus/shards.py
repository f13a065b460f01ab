"""The first pass: sources to cleaned documents on disk, in shards that a killed run does not repeat.

A shard is a run of consecutive rows of one source. Its files are written when it is complete, last `.json`, which also
says where the next shard starts. This process reads the rows in order and worker processes clean them; the result is
the same for any number of workers.
"""

import json
import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.disk import replace_text
from common.errors import require_above, require_at_least, require_below
from common.known_sets import require_own_terms
from common.metrics import progress
from common.provenance import Terms
from common.rows import Raw, RowCounts, printable, raw_rows
from common.sources import Found, HubDataset, HubFiles, fetched, found_files
from common.workers import batches, ordered_map
from distill.text.cleaning import CleanedBatch, Cleaner, CleaningCounts, TextBatch

SHARD_BYTES = 2**25
"""Raw bytes of a shard: what a killed run repeats at most."""
_SHARD_DOCUMENTS = 2**16  # near-duplicates take a kilobyte of each
_BATCH_BYTES = 2**20
_BATCH_ROWS = 2000
_FEW_BYTES = 2**24  # cleaned faster than workers start
_CHECKS_FILE = "checks.u16"

RowPosition = tuple[int, int, int]
"""A place in the text: index of the source, index of its file, number of the last row read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextSource:
    """One source of text: its files, its terms and its share of the corpus."""

    terms: Terms
    """Name in cards, licence and obligations."""
    files: tuple[Path, ...] | HubFiles | HubDataset
    """Local files, which enter the key by content; files of a hub data set at one commit, fetched one at a time; or the
    name of a data set, in a recipe whose sources are not resolved yet."""
    weight: float | None = None
    """Share of the characters, relative to the weights of the other sources: any prefix of train holds the sources in
    this ratio, until one of them ends. None in all sources: one source after the other."""
    japanese: bool = True
    """Whether the quality rules for Japanese apply; false for English or code."""
    text_field: str = "text"
    """The column that holds the text."""
    max_files: int | None = None
    """Of a data set on the hub only the first files, by path; None takes all. A set may be larger than any disk."""

    def __post_init__(self) -> None:
        require_own_terms(None if isinstance(self.files, tuple) else self.files.name, self.terms)
        require_at_least(1, max_files=self.max_files)
        require_above(0, weight=self.weight, next_step=f"correct the weight of {self.terms.name}")
        require_below(math.inf, weight=self.weight, next_step=f"correct the weight of {self.terms.name}")

    @property
    def found(self) -> Found:
        """Its files; UserError where only the name of the data set is known."""
        return found_files(self.files)

    @property
    def revision(self) -> str | None:
        """The commit of a hub dataset."""
        return self.files.revision if isinstance(self.files, HubFiles) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A finished shard."""

    stem: Path
    """Path of its files without their suffixes."""
    source: int
    """Index of its source."""
    documents: int
    """Number of documents."""
    next: RowPosition
    """Where the next shard starts."""
    counts: CleaningCounts

    def lines(self) -> Iterator[str]:
        """Its documents, as lines of JSON."""
        with self.stem.with_suffix(".jsonl").open(encoding="utf-8", newline="\n") as file:
            yield from file

    def array(self, name: str) -> NDArray[Any]:
        """`digests` [documents, 2], `characters` [documents] or `band_keys` [bands, documents], mapped from disk."""
        return np.load(self.stem.with_suffix(f".{name}.npy"), mmap_mode="r" if self.documents else None)


@dataclass(kw_only=True, slots=True)
class _OpenShard:
    """The shard that is being filled."""

    source: int
    bytes: int = 0
    next: RowPosition = (0, 0, 0)
    cleaned: list[CleanedBatch] = field(default_factory=list[CleanedBatch])

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
    """Clean all sources, in their order, into `folder`; the shards of an earlier start are kept.

    Small sources use one of the `workers` (processes). `max_bad_share` limits the bad rows among all rows of `files`,
    which are some of `all_files`; None reads all.

    Raises:
        UserError: a file is missing, a download fails, or a worker is killed; InputError: a file is damaged, or too
            many rows are bad.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = finished_shards(folder)
    checks = folder / _CHECKS_FILE
    if checks.is_file():  # without the check values of a shard that was not completed
        values = sum(shard.documents for shard in shards) * cleaner.permutations
        os.truncate(checks, values * np.dtype(np.uint16).itemsize)
    rows = RowCounts()
    for shard in shards:
        rows.merge(shard.counts.rows)
    filled: _OpenShard | None = None
    start = shards[-1].next if shards else None
    places: deque[tuple[RowPosition, int]] = deque()
    inputs = _text_batches(sources, all_files(sources) if files is None else files, start, folder, places)
    cleaned = ordered_map(cleaner, inputs, workers=1 if _are_small(sources) else workers)
    for result in progress(cleaned, label="cleaning", unit="batches"):
        position, size = places.popleft()
        rows.merge(result.counts.rows)
        rows.check_early(max_bad_share)
        if filled is not None and (filled.source != position[0] or filled.is_full):
            shards.append(_write(folder, len(shards), filled))
            filled = None
        filled = filled or _OpenShard(source=position[0])
        filled.cleaned.append(result)
        filled.bytes += size
        filled.next = position
    if filled is not None:
        shards.append(_write(folder, len(shards), filled))
    rows.check(max_bad_share)
    return shards


def finished_shards(folder: Path) -> list[Shard]:
    """The complete shards, in order."""
    shards: list[Shard] = []
    for path in sorted(folder.glob("*.json")):
        values = json.loads(path.read_text(encoding="utf-8"))
        values |= {"next": tuple(values["next"]), "counts": CleaningCounts.from_json(values["counts"])}
        shards.append(Shard(stem=path.with_suffix(""), **values))
    return shards


class CheckValues:
    """The MinHash check values of all documents of one or more shard folders, read when they are needed."""

    def __init__(self, folders: Sequence[Path], documents: Sequence[int], permutations: int) -> None:
        self._files = [folder / _CHECKS_FILE for folder in folders]
        self._ends = np.cumsum(documents)
        self._permutations = permutations

    def __call__(self, documents: NDArray[np.int64]) -> NDArray[np.uint16]:
        """[documents, permutations] of some documents, by their index over all folders."""
        values = np.zeros((len(documents), self._permutations), np.uint16)
        owners = np.searchsorted(self._ends, documents, side="right")
        for owner in np.unique(owners).tolist():
            # Mapped again each time, so that pages that were read do not accumulate in this process.
            mapped = np.memmap(self._files[owner], np.uint16, "r").reshape(-1, self._permutations)
            start = self._ends[owner - 1] if owner else 0
            values[owners == owner] = mapped[documents[owners == owner] - start]
        return values


def all_files(sources: Sequence[TextSource]) -> list[tuple[int, int]]:
    """Every file as (index of its source, index in the source), in order."""
    found = [source.found for source in sources]
    counts = [len(files.files if isinstance(files, HubFiles) else files) for files in found]
    return [(number, place) for number, count in enumerate(counts) for place in range(count)]


def _text_batches(
    sources: Sequence[TextSource],
    files: Sequence[tuple[int, int]],
    start: RowPosition | None,
    scratch: Path,
    places: deque[tuple[RowPosition, int]],
) -> Iterator[TextBatch]:
    """All rows of `files` after `start` in batches; appends the end position and the bytes of each to `places`."""
    for number, place in files:
        if start is not None and (number, place) < start[:2]:
            continue
        source, found = sources[number], sources[number].found
        after = start[2] if start is not None and (number, place) == start[:2] else 0

        def size(row: tuple[int, Raw], text_field: str = source.text_field) -> int:
            raw = row[1]
            return len(raw) if isinstance(raw, bytes) else 3 * len(raw.get(text_field) or "")

        with (
            fetched(found, found.files[place], scratch / "fetched")
            if isinstance(found, HubFiles)
            else nullcontext(found[place])
        ) as path:
            named = {"source": source.terms.name, "file": printable(path.name), "text_field": source.text_field}
            rows = raw_rows(path, after=after)
            for batch, total in batches(rows, size, max_size=_BATCH_BYTES, max_items=_BATCH_ROWS):
                places.append(((number, place, batch[-1][0]), total))
                yield TextBatch(rows=batch, japanese=source.japanese, **named)


def _write(folder: Path, number: int, shard: _OpenShard) -> Shard:
    stem, cleaned = folder / f"{number:05d}", shard.cleaned
    counts = CleaningCounts()
    for result in cleaned:
        counts.merge(result.counts)
    with stem.with_suffix(".jsonl").open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(chain.from_iterable(result.lines for result in cleaned))
    np.save(stem.with_suffix(".digests.npy"), np.concatenate([result.digests for result in cleaned]))
    np.save(stem.with_suffix(".characters.npy"), np.concatenate([result.characters for result in cleaned]))
    keys = [result.band_keys for result in cleaned if result.band_keys is not None]
    checks = [result.checks for result in cleaned if result.checks is not None]
    if keys:
        np.save(stem.with_suffix(".band_keys.npy"), np.ascontiguousarray(np.concatenate(keys).T))
    if checks:
        with (folder / _CHECKS_FILE).open("ab") as file:
            file.write(np.concatenate(checks).tobytes())
            file.flush()
            os.fsync(file.fileno())
    documents = sum(len(result.lines) for result in cleaned)
    values: dict[str, Any] = {"source": shard.source, "documents": documents, "next": shard.next}
    replace_text(stem.with_suffix(".json"), json.dumps(values | {"counts": counts.to_json()}, ensure_ascii=False))
    return Shard(stem=stem, **values, counts=counts)


def _are_small(sources: Sequence[TextSource]) -> bool:
    """Whether all files are local, and small together."""
    local = [source.found for source in sources if not isinstance(source.found, HubFiles)]
    size = sum(path.stat().st_size for files in local for path in files if path.is_file())
    return len(local) == len(sources) and size < _FEW_BYTES
