"""Text to packed rows: `python -m distill corpus FILE... --tokenizer DIR --out DIR`.

Reads `.jsonl` rows with a `text`, drops what is empty, broken or there twice, cuts train, calibration, validation and
test by each text's digest, and packs every split. Question documents may mark their `answers` (character spans): in
train the rest of such a document then counts less, and in the held-out splits everything counts fully, so that a
held-out loss is the plain mean over tokens. Runs in two passes over the text; memory holds 16 bytes of each document.

It does not know where the text comes from, nor what will train on it.
"""

import json
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from common.documents import Encoded, cut_documents, pack_documents
from common.duplicates import ExactDuplicates, digest
from common.errors import UserError
from common.metrics import progress
from common.packing import FULL_WEIGHT
from common.rows import MAX_BAD_SHARE, Row, RowCounts, data_files, read_rows
from common.splits import Shares
from common.store import Workspace, stage
from common.tokenizer import Tokenizer

Spans = Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusConfig:
    """How text is cleaned, cut and packed."""

    sequence_tokens: int = 1024
    """Tokens in a packed row; longer documents are cut into pieces of this length."""
    shares: Shares = field(default_factory=Shares)
    """Shares of calibration, validation and test."""
    prompt_weight: int = 10
    """Loss weight, in hundredths, of text outside the answers of a train document that marks its answers."""
    max_bad_share: float = MAX_BAD_SHARE
    """Bad rows allowed (empty, not UTF-8, not JSON, no text), as a share of all rows, 0 to 1."""
    seed: int = 0
    """Chooses another cut into splits."""

    def __post_init__(self) -> None:
        if self.sequence_tokens < 2 or not 0 <= self.prompt_weight <= FULL_WEIGHT or self.seed < 0:
            raise UserError(
                wanted=f"sequence_tokens of at least 2, prompt_weight from 0 to {FULL_WEIGHT}, a seed of at least 0",
                got=f"{self.sequence_tokens}, {self.prompt_weight}, {self.seed}",
                next_step="Correct the corpus's config.",
            )


@stage(version=1)
def corpus(config: CorpusConfig, workspace: Workspace, *inputs: Path) -> dict[str, Any]:
    """Writes documents/, packed/, tokenizer/ and data_card.json.

    Args:
        config: see CorpusConfig.
        workspace: where.
        inputs: one or more text files, or folders with `text.jsonl`; last the tokenizer's folder.

    Raises:
        UserError: a file is missing or damaged, too many rows are bad, or no document is left.
    """
    *sources, tokenizer_folder = inputs
    tokenizer = Tokenizer.load(tokenizer_folder)
    files = [file for source in sources for file in data_files(source, "text")]
    cleaning = _Cleaning(files, config)
    rows = progress(cleaning.kept(), label="cleaning", unit="documents")
    card = cut_documents(workspace.folder, rows, config.shares, cleaning.card)
    start = time.perf_counter()

    def encode(split: str, batch: Sequence[Row]) -> list[Encoded]:
        return _encode(tokenizer, batch, prompt_weight=config.prompt_weight if split == "train" else FULL_WEIGHT)

    metas = pack_documents(workspace.folder, encode, sequence_tokens=config.sequence_tokens, tokenizer=tokenizer)
    tokenizer.save(workspace.folder / "tokenizer")
    card |= {"splits": metas}
    (workspace.folder / "data_card.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    tokens = sum(meta["tokens"] for meta in metas.values())
    return card | {"tokens": tokens, "tokens_per_s": round(tokens / (time.perf_counter() - start), 1)}


class _Cleaning:
    """The first pass: which rows are kept, and why the others are not."""

    def __init__(self, files: Sequence[Path], config: CorpusConfig) -> None:
        self._files, self._config = files, config
        self._counts = RowCounts()
        self._duplicates = 0
        self._kept = 0

    def kept(self) -> Iterator[tuple[bytes, Row]]:
        """Digest and content of each kept row, in the order of the files."""
        config, counts, duplicates = self._config, self._counts, ExactDuplicates()
        for row in read_rows(self._files, fields={"text": str}, counts=counts, max_bad_share=config.max_bad_share):
            answers = row.get("answers")
            if answers is not None and not _are_spans(answers, len(row["text"])):
                counts.add_bad("answers are no spans of the text")
                continue
            key = digest(row["text"], seed=config.seed)
            if duplicates.seen_before(key):
                self._duplicates += 1
                continue
            self._kept += 1
            yield key, row
        if not self._kept:
            raise UserError(
                wanted="at least one document with text",
                got=f"none in {', '.join(file.name for file in self._files)}",
                next_step="Give .jsonl files whose rows hold a `text`.",
            )

    def card(self) -> dict[str, Any]:
        """Rows in, removed per rule, out."""
        removed = dict(sorted(self._counts.bad.items())) | {"exact duplicate": self._duplicates}
        return {"rows_in": self._counts.rows, "removed": removed, "rows_out": self._kept}


def _are_spans(answers: Any, characters: int) -> TypeGuard[Spans]:
    """Whether `answers` is a list of [start, end] with 0 <= start < end <= characters."""
    return isinstance(answers, list) and all(
        isinstance(span, list)
        and len(span) == 2
        and all(isinstance(place, int) for place in span)
        and 0 <= span[0] < span[1] <= characters
        for span in answers
    )


def _encode(tokenizer: Tokenizer, rows: Sequence[Row], *, prompt_weight: int) -> list[Encoded]:
    """Ids closed by the document end, and weights."""
    encoded: list[Encoded] = []
    for row, encoding in zip(rows, tokenizer.encode_batch([row["text"] for row in rows]), strict=True):
        ids = encoding.ids
        answers = row.get("answers")
        if answers and prompt_weight < FULL_WEIGHT:
            weights = answer_weights(encoding.offsets, answers, prompt_weight=prompt_weight)
        else:
            weights = [FULL_WEIGHT] * len(ids)
        encoded.append(([*ids, tokenizer.document_end_id], [*weights, FULL_WEIGHT]))
    return encoded


def answer_weights(offsets: Sequence[tuple[int, int]], answers: Spans, *, prompt_weight: int) -> list[int]:
    """Loss weights in hundredths: full on every token that holds a part of an answer, and on the one that closes it.

    Args:
        offsets: character spans [start, end) of the tokens, in order.
        answers: character spans [start, end) of the answers.
        prompt_weight: of all other tokens.
    """
    weights = [prompt_weight] * len(offsets)
    ends = [end for _, end in offsets]
    for start, end in answers:
        place = bisect_left(ends, start + 1)  # the first token that ends after the answer's start
        while place < len(offsets) and offsets[place][0] < end:
            weights[place] = FULL_WEIGHT
            place += 1
        if place < len(offsets):
            weights[place] = FULL_WEIGHT
    return weights
