"""Cleaning: batches of rows to documents, one by one, with the reason why the others are removed.

Each document is judged alone, so that batches can be cleaned in any process, here or on a cluster, with the same
result. What compares documents (duplicates, splits) comes later. Independent of files and stages; loads no torch, which
every worker would load again.
"""

import json
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from common.duplicates import NearDuplicatesConfig, digest, signatures
from common.errors import require_at_least
from common.rows import Raw, Row, RowCounts, parse
from distill.text.normalise import normalise
from distill.text.personal import redact
from distill.text.quality import QualityConfig, fault
from eval.decontamination import Decontaminator

Spans = Sequence[Sequence[int]]
BENCHMARK_RULE = "benchmark item"
SAMPLES = 3
"""Removed documents that the card shows of each rule."""
SAMPLE_CHARACTERS = 200
_COUNTERS = ("removed", "changed", "contamination")


@dataclass(frozen=True, kw_only=True, slots=True)
class CleaningConfig:
    """Rules for one document; every step can be off."""

    normalise: bool = True
    """Unicode normalisation that keeps Japanese punctuation."""
    quality: QualityConfig | None = field(default_factory=QualityConfig)
    """Rules for Japanese web text; None turns them off."""
    redact: bool = False
    """Replace e-mail addresses, telephone numbers and similar personal data by placeholders."""
    max_characters: int = 5_000_000
    """Characters of a document; a longer one is a bad row."""

    def __post_init__(self) -> None:
        require_at_least(1, max_characters=self.max_characters)


@dataclass(kw_only=True, slots=True)
class TextBatch:
    """Consecutive rows of one file."""

    source: str
    """Name of the source, written into the documents."""
    file: str
    """Name of the file, written into messages."""
    rows: list[tuple[int, Raw]]
    """(number in the file, unparsed row)."""
    japanese: bool = True
    """Whether the quality rules apply."""
    text_field: str = "text"
    """The field that holds the text."""


@dataclass(kw_only=True, slots=True)
class CleaningCounts:
    """Counts of some rows by result; they add up over batches."""

    rows: RowCounts = field(default_factory=RowCounts)
    characters_in: int = 0
    """Characters of all rows with a text, before cleaning."""
    removed: Counter[str] = field(default_factory=Counter[str])
    """Documents by the rule that removed them, without the bad rows, which `rows` counts."""
    changed: Counter[str] = field(default_factory=Counter[str])
    """Documents by the step that changed them."""
    contamination: Counter[str] = field(default_factory=Counter[str])
    """Removed documents by the benchmark of which they hold an item."""
    samples: dict[str, list[tuple[int, str, str]]] = field(default_factory=dict[str, list[tuple[int, str, str]]])
    """By rule, (priority, id, beginning of the text) of the removed documents with the lowest priorities."""

    def merge(self, later: "CleaningCounts") -> None:
        """Add the counts of the rows that follow these."""
        self.rows.merge(later.rows)
        self.characters_in += later.characters_in
        self.removed += later.removed
        self.changed += later.changed
        self.contamination += later.contamination
        for rule, samples in later.samples.items():
            self._offer(rule, samples)

    def remove(self, rule: str, row: Row, text: str) -> None:
        """Count one document as removed, and keep a sample."""
        self.removed[rule] += 1
        start = text[:SAMPLE_CHARACTERS]
        self._offer(rule, [(zlib.crc32(start.encode("utf-8", "surrogatepass")), str(row["id"]), start)])

    def _offer(self, rule: str, samples: list[tuple[int, str, str]]) -> None:
        self.samples[rule] = sorted([*self.samples.get(rule, []), *samples])[:SAMPLES]

    def to_json(self) -> dict[str, Any]:
        """The counts as JSON."""
        counters = {name: dict(getattr(self, name)) for name in _COUNTERS}
        return {"rows": asdict(self.rows), "characters_in": self.characters_in, "samples": self.samples, **counters}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "CleaningCounts":
        """The counts that `to_json` wrote."""
        samples = {rule: [(p, i, t) for p, i, t in kept] for rule, kept in values["samples"].items()}
        counters = {name: Counter(values[name]) for name in _COUNTERS}
        rows = RowCounts(**values["rows"])
        return cls(rows=rows, characters_in=values["characters_in"], samples=samples, **counters)


@dataclass(kw_only=True, slots=True)
class CleanedBatch:
    """The documents of a batch that pass all rules."""

    lines: list[str]
    """JSON objects with their line ends: `id`, `text`, `source`, and `answers` if the row has them."""
    digests: NDArray[np.uint64]
    """[documents, 2], to find exact duplicates."""
    characters: NDArray[np.uint32]
    """[documents]."""
    band_keys: NDArray[np.uint64] | None
    """[documents, bands], to find candidates for near-duplicates; None if that step is off."""
    checks: NDArray[np.uint16] | None
    """[documents, permutations], to compare candidates."""
    counts: CleaningCounts


class Cleaner:
    """All rules for one document; can be sent to a worker."""

    def __init__(
        self,
        config: CleaningConfig,
        *,
        decontaminator: Decontaminator | None = None,
        near_duplicates: NearDuplicatesConfig | None = None,
        seed: int = 0,
    ) -> None:
        self._config, self._near, self._seed = config, near_duplicates, seed
        self._decontaminator = decontaminator
        changes = (config.normalise, "normalised", normalise), (config.redact, "personal data replaced", _redacted)
        self._changes = [(name, change) for is_on, name, change in changes if is_on]

    @property
    def permutations(self) -> int:
        """Check values of each document; 0 if near-duplicates are kept."""
        return 0 if self._near is None else self._near.permutations

    @property
    def benchmarks(self) -> dict[str, dict[str, int]]:
        """`Decontaminator.card`: items that documents are compared with; empty if that step is off."""
        return {} if self._decontaminator is None else self._decontaminator.card()

    def __call__(self, batch: TextBatch) -> CleanedBatch:
        """Clean a batch; InputError if the file ends in the middle of a row."""
        counts = CleaningCounts()
        rows = (self._document(raw, number, batch, counts) for number, raw in batch.rows)
        documents = [document for document in rows if document is not None]
        texts = [document["text"] for document in documents]
        digests = b"".join(digest(text, seed=self._seed) for text in texts)
        keys, checks = (None, None) if self._near is None else signatures(texts, self._near)
        return CleanedBatch(
            lines=[json.dumps(document, ensure_ascii=False) + "\n" for document in documents],
            digests=np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 2),
            characters=np.array([len(text) for text in texts], np.uint32),
            band_keys=keys,
            checks=checks,
            counts=counts,
        )

    def clean(self, row: Row, *, japanese: bool, counts: CleaningCounts) -> Row | None:
        """The document of one good row, or None if a rule, which is counted, removes it.

        The row has `id`, `text` and optionally `answers`; `japanese` says whether the quality rules apply.
        """
        text, answers = row["text"], row.get("answers")
        for name, change in self._changes:
            changed, moved = _with_spans(text, answers, change)
            counts.changed[name] += changed != text
            text, answers = changed, moved
        if not text.strip():
            counts.remove("empty after cleaning", row, row["text"])
            return None
        rule = fault(text, self._config.quality) if japanese and self._config.quality is not None else None
        if rule is not None:
            counts.remove(rule, row, text)
            return None
        benchmark = None if self._decontaminator is None else self._decontaminator.find(text)
        if benchmark is not None:
            # Not quoted: cards are published, and must not spread benchmark text.
            counts.remove(BENCHMARK_RULE, row, f"(holds an item of {benchmark})")
            counts.contamination[benchmark] += 1
            return None
        return {"id": row["id"], "text": text} | ({} if answers is None else {"answers": answers})

    def _document(self, raw: Raw, number: int, batch: TextBatch, counts: CleaningCounts) -> Row | None:
        rows = counts.rows
        rows.rows += 1
        rows.place = f"{batch.file}:{number}"
        row = parse(raw, batch.file, number, {batch.text_field: str})
        if isinstance(row, str):
            rows.add_bad(row)
            return None
        text, answers = row[batch.text_field], row.get("answers")
        if isinstance(answers, list) and answers and all(isinstance(answer, str | dict) for answer in answers):
            answers = None  # many sets have the answers of a question as text: these are not spans
        counts.characters_in += len(text)
        is_long = len(text) > self._config.max_characters
        if is_long or (answers is not None and not are_spans(answers, len(text))):
            longest = f"more than {self._config.max_characters:,} characters"
            rows.add_bad(longest if is_long else "answers are no spans of the text")
            return None
        document = self.clean(row | {"text": text, "answers": answers}, japanese=batch.japanese, counts=counts)
        return None if document is None else document | {"source": batch.source}


def are_spans(answers: Any, characters: int) -> TypeGuard[Spans]:
    """Whether `answers` is a list of [start, end] with 0 <= start < end <= characters."""
    return isinstance(answers, list) and all(
        isinstance(span, list)
        and len(span) == 2
        and all(isinstance(place, int) for place in span)
        and 0 <= span[0] < span[1] <= characters
        for span in answers
    )


def _redacted(text: str) -> str:
    return redact(text)[0]


def _with_spans(text: str, spans: Spans | None, change: Callable[[str], str]) -> tuple[str, Spans | None]:
    """`change` of the text, and the spans moved with it.

    The text is changed piece by piece between the edges of the spans. If that differs from the change of the whole (a
    letter and its accent on two sides of an edge), the text stays unchanged.
    """
    changed = change(text)
    if not spans or changed == text:
        return changed, spans
    edges = sorted({0, len(text), *(edge for span in spans for edge in span)})
    pieces = [change(text[start:end]) for start, end in pairwise(edges)]
    if "".join(pieces) != changed:
        return text, spans
    places, place = {0: 0}, 0
    for edge, piece in zip(edges[1:], pieces, strict=True):
        place += len(piece)
        places[edge] = place
    moved = [[places[start], places[end]] for start, end in spans]
    return (changed, moved) if all(start < end for start, end in moved) else (text, spans)
