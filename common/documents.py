"""The folder layout of corpora and conversations: cleaned documents as text and as packed rows, by split.

`documents/<split>-00000.jsonl.gz` has the kept rows, `packed/<split>/` their tokens, `tokenizer/` a copy of the
tokenizer, `data_card.json` what was removed and why. A stage cleans its rows and turns a row into ids and weights. This
module splits, writes and packs them as streams, and skips what an earlier start of a killed stage finished. The split
depends on the digest of a document, not on its place in a file: a corpus can grow or change its order, and no test
document moves into train. Independent of stages and of the fields of a row.
"""

import contextlib
import gzip
import io
import itertools
import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.disk import replace_text
from common.errors import UserError
from common.metrics import progress
from common.packing import Document, write_packed
from common.provenance import CARD_FILE
from common.rows import Row
from common.tokenizer import Tokenizer
from common.workers import batches

Encoded = tuple[list[int], list[int]]
"""Ids of a document with its closing token, and the loss weight of each in hundredths."""

SPLITS = ("train", "calibration", "validation", "test")
# A small corpus fills its splits in this order, one document each, before any share counts.
_NEEDED_FIRST = ("train", "validation", "test", "calibration")

SPLIT_FILE = "scratch/split.json"
"""Written when the documents are complete, so that a restarted stage does not write them again."""
MAX_DROPPED_SHARE = 0.2
"""A larger share of removed rows is worth a warning."""
_NAMED_RULES = 3
_KEPT_FILE = "scratch/kept.jsonl"
_BATCH_CHARACTERS = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Shares:
    """Shares of the documents, 0 to 1; the rest is train."""

    calibration: float = 0.01
    """Used by quantisation, never scored."""
    validation: float = 0.01
    """Used to choose the best checkpoint."""
    test: float = 0.02
    """Used by the report only."""

    def __post_init__(self) -> None:
        shares = (self.calibration, self.validation, self.test)
        if min(shares) < 0 or sum(shares) >= 1:
            wanted = "shares of at least 0 with a sum below 1, so that train is not empty"
            got = f"calibration {self.calibration}, validation {self.validation}, test {self.test}"
            raise UserError("out-of-range", wanted=wanted, got=got, next_step="lower the shares")


def assign_splits(digests: Iterable[bytes], shares: Shares) -> NDArray[np.uint8]:
    """The split of each document, as its index in `SPLITS`, by the first 8 bytes (big-endian) of its digest.

    `digests` are `common.duplicates.digest` of each document, all different; see `assign_by_number`.
    """
    return assign_by_number(np.array([int.from_bytes(digest[:8], "big") for digest in digests], np.uint64), shares)


def assign_by_number(numbers: NDArray[np.uint64], shares: Shares) -> NDArray[np.uint8]:
    """The split of each document, as its index in `SPLITS`, from a hash of the document [documents].

    Train, and then every split with a share, gets at least one document if there are enough: an empty split takes one
    from train, or from any split that has more than one.
    """
    held_out = [shares.calibration, shares.validation, shares.test]
    places = np.searchsorted(np.cumsum(held_out), numbers.astype(np.float64) / 2**64, side="right")
    splits = np.where(places == len(held_out), 0, places + 1).astype(np.uint8)
    order = [SPLITS.index(name) for name in _NEEDED_FIRST if name == "train" or getattr(shares, name) > 0]
    for rank, split in enumerate(order):
        counts = np.bincount(splits, minlength=len(SPLITS))
        if counts[split] == 0:
            spare = [other for other in order if counts[other] > 1]
            donors = spare or [other for other in order[rank + 1 :] if counts[other] > 0]
            if donors:
                members = np.flatnonzero(splits == donors[0])
                splits[members[numbers[members].argmin()]] = split
    return splits


def documents_file(folder: Path, split: str) -> Path:
    """The file of a split's documents in the folder of a stage."""
    return folder / "documents" / f"{split}-00000.jsonl.gz"


def kept_line(card: Mapping[str, Any]) -> str:
    """One line with the rows kept and removed by rule, from `rows_in`, `removed` and `rows_out` of a data card."""
    removed = ", ".join(f"{number:,} {rule}" for rule, number in card["removed"].items() if number)
    return f"kept {card['rows_out']:,} of {card['rows_in']:,} rows; removed: {removed or 'none'}"


def kept_lines(card: Mapping[str, Any]) -> list[str]:
    """`kept_line` of a whole data card and, if there are several sources, of each."""
    each = [f"  {source['name']}: {kept_line(source)}" for source in card["sources"]]
    return [kept_line(card), *(each if len(each) > 1 else [])]


def drop_warnings(card: Mapping[str, Any], advice: Callable[[str], str | None]) -> list[str]:
    """A warning for each source of a data card that lost more than `MAX_DROPPED_SHARE` of its rows to the rules.

    `advice` gives, for the name of a rule, how users keep these rows; None for rows that they asked to leave out.
    """
    warnings: list[str] = []
    for source in card["sources"]:
        removed = {rule: count for rule, count in source["removed"].items() if count and advice(rule) is not None}
        lost = sum(removed.values())
        if lost > MAX_DROPPED_SHARE * source["rows_in"]:
            rules = sorted(removed, key=lambda rule: -removed[rule])[:_NAMED_RULES]
            named = "; ".join(f"{removed[rule]:,} {rule} ({advice(rule)})" for rule in rules)
            warnings.append(f"{lost:,} of {source['rows_in']:,} rows of {source['name']} were removed: {named}")
    return warnings


def split_documents(
    folder: Path, rows: Iterable[tuple[bytes, Row]], shares: Shares, facts: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Write the documents of every split; memory holds 16 bytes a document. Finished work is not repeated.

    Args:
        folder: the workspace of a stage.
        rows: digest and content of each kept row; all digests differ.
        shares: share of each split.
        facts: called after the last row; returns JSON, which is the result here and in every later start.
    """
    done = folder / SPLIT_FILE
    if done.is_file():
        return json.loads(done.read_text())
    kept = folder / _KEPT_FILE
    kept.parent.mkdir(parents=True, exist_ok=True)
    digests: list[bytes] = []
    try:
        with kept.open("w", encoding="utf-8", newline="\n") as file:
            for digest, row in rows:
                digests.append(digest)
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        result = facts()
        with kept.open(encoding="utf-8", newline="\n") as lines:
            write_documents(folder, zip(assign_splits(digests, shares).tolist(), lines, strict=True))
    finally:
        kept.unlink(missing_ok=True)  # the next start reads all rows again
    replace_text(done, json.dumps(result))
    return result


def write_documents(folder: Path, lines: Iterable[tuple[int, str]]) -> None:
    """Write documents, as (index in `SPLITS`, line of JSON), to the files of their splits."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(compressed(documents_file(folder, split))) for split in SPLITS]
        for split, line in lines:
            files[split].write(line)


def finish_documents(
    folder: Path,
    encode: Callable[[str, Sequence[Row]], list[Encoded]],
    card: Callable[[dict[str, dict[str, Any]]], dict[str, Any]],
    *,
    sequence_tokens: int,
    tokenizer: Tokenizer,
    sources: Sequence[str] = (),
    mixed_documents: int | None = None,
) -> dict[str, Any]:
    """Pack the documents of every split, copy the tokenizer and write the data card. Finished splits are not repeated.

    Args:
        folder: the workspace of a stage, with its documents.
        encode: `encode(split, rows)` returns ids and weights of each row of a batch.
        card: from each split's meta.json to the data card, to which `splits` and `tokens` are added here.
        sequence_tokens: tokens of a packed row.
        tokenizer: the tokenizer of the ids.
        sources: names whose tokens are counted, of the rows that have one as `source`.
        mixed_documents: number at the beginning of train that share no row with later ones: weights hold among them.

    Returns:
        The facts of the stage: the card, and `tokens_per_s`.
    """
    start, packed_before = time.perf_counter(), [split for split in SPLITS if _meta_file(folder, split).is_file()]
    ends = {SPLITS[0]: mixed_documents}
    metas = {
        split: _packed(folder, split, encode, sequence_tokens, tokenizer, sources, ends.get(split)) for split in SPLITS
    }
    tokenizer.save(folder / "tokenizer")
    tokens = sum(meta["tokens"] for meta in metas.values())
    written = card(metas) | {"splits": metas, "tokens": tokens}
    (folder / CARD_FILE).write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    packed_now = sum(meta["tokens"] for split, meta in metas.items() if split not in packed_before)
    return written | {"tokens_per_s": round(packed_now / (time.perf_counter() - start), 1)}


def _meta_file(folder: Path, split: str) -> Path:
    return folder / "packed" / split / "meta.json"


def _packed(
    folder: Path,
    split: str,
    encode: Callable[[str, Sequence[Row]], list[Encoded]],
    sequence_tokens: int,
    tokenizer: Tokenizer,
    sources: Sequence[str],
    window_end: int | None,
) -> dict[str, Any]:
    """meta.json of the packed split."""
    meta = _meta_file(folder, split)

    def documents(after: int) -> Iterator[Document | None]:
        number = after
        lines = progress(
            itertools.islice(_lines(folder, split), after, None), label=f"packing {split}", unit="documents"
        )
        # Enough for the threads of the tokenizer, little memory.
        for batch, _ in batches(lines, len, max_size=_BATCH_CHARACTERS):
            rows: list[Row] = [json.loads(line) for line in batch]
            for row, (ids, weights) in zip(rows, encode(split, rows), strict=True):
                if number == window_end:
                    yield None
                number += 1
                yield ids, weights, row.get("source") if sources else None

    if not meta.is_file():
        write_packed(meta.parent, documents, sequence_tokens=sequence_tokens, tokenizer=tokenizer, labels=sources)
    return json.loads(meta.read_text())


def _lines(folder: Path, split: str) -> Iterator[str]:
    with gzip.open(documents_file(folder, split), "rt", encoding="utf-8", newline="\n") as file:
        yield from file


@contextlib.contextmanager
def compressed(path: Path) -> Generator[io.TextIOBase]:
    """A new gzip text file without time stamp and name, so that equal content gives equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as text,
    ):
        yield text
