"""The layout that corpora and conversations share: cleaned documents as text, and the same ones packed, by split.

`documents/<split>-00000.jsonl.gz` holds the kept rows, `packed/<split>/` their tokens, `tokenizer/` a copy of the
tokenizer, `data_card.json` what was removed and why. A stage cleans its rows and says how one becomes ids and weights;
this module cuts, writes and packs them in streams, and keeps what an earlier start of a killed stage finished. It knows
no stage and no field of a row.
"""

import contextlib
import gzip
import io
import itertools
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.disk import replace_text
from common.metrics import progress
from common.packing import Document, write_packed
from common.rows import Row
from common.splits import SPLITS, Shares, assign_splits
from common.tokenizer import Tokenizer

Encoded = tuple[list[int], list[int]]
"""Ids of a document, its closing token included, and the loss weight of each in hundredths."""

# Written to scratch when the documents are complete: what a restarted stage need not do again.
_CUT_FILE = "scratch/cut.json"
_KEPT_FILE = "scratch/kept.jsonl"
_BATCH_LINE_CHARACTERS = 1_000_000


def documents_file(folder: Path, split: str) -> Path:
    """Where a stage's folder keeps the documents of a split."""
    return folder / "documents" / f"{split}-00000.jsonl.gz"


def kept_line(card: Mapping[str, Any]) -> str:
    """Rows kept and removed, rule by rule, in one line: from `rows_in`, `removed` and `rows_out` of a data card."""
    removed = ", ".join(f"{number:,} {rule}" for rule, number in card["removed"].items() if number)
    return f"kept {card['rows_out']:,} of {card['rows_in']:,} rows; removed: {removed or 'none'}"


def kept_lines(card: Mapping[str, Any]) -> list[str]:
    """`kept_line` of a whole data card, and of each source where there are several."""
    each = [f"  {source['name']}: {kept_line(source)}" for source in card["sources"]]
    return [kept_line(card), *(each if len(each) > 1 else [])]


def cut_documents(
    folder: Path, rows: Iterable[tuple[bytes, Row]], shares: Shares, facts: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Writes the documents of every split; memory holds 16 bytes of each.

    Args:
        folder: a stage's workspace; done before a kill, this is not done again.
        rows: digest and content of each kept row; all digests differ.
        shares: how much each split gets.
        facts: called when the rows are exhausted; JSON.

    Returns:
        What `facts` returned, now or when the documents were written.
    """
    cut = folder / _CUT_FILE
    if cut.is_file():
        return json.loads(cut.read_text())
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
    replace_text(cut, json.dumps(result))
    return result


def write_documents(folder: Path, lines: Iterable[tuple[int, str]]) -> None:
    """Writes documents, given as lines of JSON with their split's place in `SPLITS`, to the files of their splits."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(compressed(documents_file(folder, split))) for split in SPLITS]
        for split, line in lines:
            files[split].write(line)


def pack_documents(
    folder: Path,
    encode: Callable[[str, Sequence[Row]], list[Encoded]],
    *,
    sequence_tokens: int,
    tokenizer: Tokenizer,
) -> dict[str, dict[str, Any]]:
    """Packs the documents of every split, and goes on behind what an earlier start packed.

    A row's `source`, where it has one, names whose tokens are counted together.

    Args:
        folder: a stage's workspace, its documents written.
        encode: `encode(split, rows)` gives each row's ids and weights; called with batches of rows.
        sequence_tokens: tokens in a packed row.
        tokenizer: whose ids they are.

    Returns:
        Each split's meta.json.
    """
    metas: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        meta = folder / "packed" / split / "meta.json"
        if not meta.is_file():

            def documents(after: int, split: str = split) -> Iterator[Document]:
                lines = itertools.islice(_lines(folder, split), after, None)
                for batch in _batches(progress(lines, label=f"packing {split}", unit="documents")):
                    rows: list[Row] = [json.loads(line) for line in batch]
                    for row, (ids, weights) in zip(rows, encode(split, rows), strict=True):
                        yield ids, weights, row.get("source")

            write_packed(meta.parent, documents, sequence_tokens=sequence_tokens, tokenizer=tokenizer)
        metas[split] = json.loads(meta.read_text())
    return metas


def _lines(folder: Path, split: str) -> Iterator[str]:
    with gzip.open(documents_file(folder, split), "rt", encoding="utf-8", newline="\n") as file:
        yield from file


@contextlib.contextmanager
def compressed(path: Path) -> Generator[io.TextIOBase]:
    """A gzip file that depends on its content only: no time stamp and no file name inside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as text,
    ):
        yield text


def _batches(lines: Iterable[str]) -> Iterator[list[str]]:
    """Lines in lists of about a million characters: enough for the tokenizer's threads, little for memory."""
    batch: list[str] = []
    characters = 0
    for line in lines:
        batch.append(line)
        characters += len(line)
        if characters >= _BATCH_LINE_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
