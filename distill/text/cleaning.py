"""Cleaning: rows as they were read to documents that are kept, one by one, and why the others are not.

A batch of rows in, a batch of documents out, with counts, samples, and what duplicates are recognised by. Everything
here looks at one document alone, so that batches may be cleaned in any process, here or on a cluster, with the same
result; what needs all documents (duplicates, the cut into splits) comes afterwards. It knows no file and no stage, and
loads no torch, which every worker would load again.
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

from common.duplicates import NearDuplicatesConfig, digest
from common.duplicates.near import signatures
from common.errors import UserError
from common.rows import Raw, Row, RowCounts, parse
from distill.text.normalise import normalise
from distill.text.personal import redact
from distill.text.quality import QualityConfig, fault
from eval.decontamination import Decontaminator

Spans = Sequence[Sequence[int]]
BENCHMARK_RULE = "benchmark item"
SAMPLES = 3
"""Removed documents shown for each rule."""
SAMPLE_CHARACTERS = 200
_COUNTERS = ("removed", "changed", "contamination")


@dataclass(frozen=True, kw_only=True, slots=True)
class CleaningConfig:
    """What is done to one document; every step can be off."""

    normalise: bool = True
    """Unicode normalisation that keeps Japanese punctuation."""
    quality: QualityConfig | None = field(default_factory=QualityConfig)
    """Rules for Japanese web text; None keeps every document."""
    redact: bool = False
    """Replace e-mail addresses, telephone numbers and the like by placeholders."""
    max_characters: int = 5_000_000
    """Characters of a document; a longer one is a bad row."""

    def __post_init__(self) -> None:
        if self.max_characters < 1:
            raise UserError(
                wanted="max_characters of at least 1", got=str(self.max_characters), next_step="Correct the settings."
            )


@dataclass(kw_only=True, slots=True)
class Batch:
    """Rows of one file."""

    source: str
    """Name of the source, for the documents."""
    file: str
    """Name of the file, for messages."""
    rows: list[tuple[int, Raw]]
    """Numbers in the file, and the rows."""
    japanese: bool = True
    """Whether the quality rules apply."""
    text_field: str = "text"
    """The field that holds the text."""


@dataclass(kw_only=True, slots=True)
class Counts:
    """What became of some rows; adds up over batches."""

    rows: RowCounts = field(default_factory=RowCounts)
    characters_in: int = 0
    """Characters of all rows with a text, as read."""
    removed: Counter[str] = field(default_factory=Counter[str])
    """Documents by the rule that removed them; bad rows are counted in `rows`."""
    changed: Counter[str] = field(default_factory=Counter[str])
    """Documents by the step that changed them."""
    contamination: Counter[str] = field(default_factory=Counter[str])
    """Documents removed, by the benchmark that they held an item of."""
    samples: dict[str, list[tuple[int, str, str]]] = field(default_factory=dict[str, list[tuple[int, str, str]]])
    """(priority, id, beginning of the text) of some removed documents by rule: those of the lowest priority."""

    def merge(self, later: "Counts") -> None:
        """Adds the counts of rows that come after these."""
        self.rows.merge(later.rows)
        self.characters_in += later.characters_in
        self.removed += later.removed
        self.changed += later.changed
        self.contamination += later.contamination
        for rule, samples in later.samples.items():
            self.samples[rule] = sorted([*self.samples.get(rule, []), *samples])[:SAMPLES]

    def remove(self, rule: str, row: Row, text: str) -> None:
        """Counts one document as removed, and keeps a sample."""
        self.removed[rule] += 1
        start = text[:SAMPLE_CHARACTERS]
        sample = (zlib.crc32(start.encode("utf-8", "surrogatepass")), str(row["id"]), start)
        self.samples[rule] = sorted([*self.samples.get(rule, []), sample])[:SAMPLES]

    def to_json(self) -> dict[str, Any]:
        """The counts as JSON."""
        counters = {name: dict(getattr(self, name)) for name in _COUNTERS}
        return {"rows": asdict(self.rows), "characters_in": self.characters_in, "samples": self.samples, **counters}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Counts":
        """The counts that `to_json` wrote."""
        samples = {rule: [(p, i, t) for p, i, t in kept] for rule, kept in values["samples"].items()}
        counters = {name: Counter(values[name]) for name in _COUNTERS}
        rows = RowCounts(**values["rows"])
        return cls(rows=rows, characters_in=values["characters_in"], samples=samples, **counters)


@dataclass(kw_only=True, slots=True)
class Cleaned:
    """The documents of a batch that are kept so far."""

    lines: list[str]
    """One JSON object each, with its line end: `id`, `text`, `source`, and `answers` where the row has them."""
    digests: NDArray[np.uint64]
    """[documents, 2]: what exact duplicates are recognised by."""
    characters: NDArray[np.uint32]
    """[documents]."""
    band_keys: NDArray[np.uint64] | None
    """[documents, bands]: what candidates for near-duplicates are found by; None where that step is off."""
    checks: NDArray[np.uint16] | None
    """[documents, permutations]: what candidates are compared by."""
    counts: Counts


class Cleaner:
    """All steps that look at one document alone, ready to be sent to a worker."""

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
        self._changes: list[tuple[str, Callable[[str], str]]] = []
        if config.normalise:
            self._changes.append(("normalised", normalise))
        if config.redact:
            self._changes.append(("personal data replaced", _redacted))

    @property
    def permutations(self) -> int:
        """Checking values of each document; 0 where near-duplicates are not looked for."""
        return 0 if self._near is None else self._near.permutations

    @property
    def benchmarks(self) -> dict[str, dict[str, int]]:
        """Items that documents are compared with, as `Decontaminator.card` tells; none where that step is off."""
        return {} if self._decontaminator is None else self._decontaminator.card()

    def __call__(self, batch: Batch) -> Cleaned:
        """Cleans a batch.

        Raises:
            InputError: the file ends in the middle of a row.
        """
        counts = Counts()
        texts: list[str] = []
        lines: list[str] = []
        for number, raw in batch.rows:
            document = self._document(raw, number, batch, counts)
            if document is not None:
                texts.append(document["text"])
                lines.append(json.dumps(document, ensure_ascii=False) + "\n")
        digests = b"".join(digest(text, seed=self._seed) for text in texts)
        keys, checks = (None, None) if self._near is None else signatures(texts, self._near)
        return Cleaned(
            lines=lines,
            digests=np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 2),
            characters=np.array([len(text) for text in texts], np.uint32),
            band_keys=keys,
            checks=checks,
            counts=counts,
        )

    def clean(self, row: Row, *, japanese: bool, counts: Counts) -> Row | None:
        """The document of one good row, or None where a rule removes it; `counts` says which.

        Args:
            row: with `id`, `text` and perhaps `answers`.
            japanese: whether the quality rules apply.
            counts: filled.
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
            # Not quoted: cards are published, and benchmark text must not spread with them.
            counts.remove(BENCHMARK_RULE, row, f"(holds an item of {benchmark})")
            counts.contamination[benchmark] += 1
            return None
        return {"id": row["id"], "text": text} | ({} if answers is None else {"answers": answers})

    def _document(self, raw: Raw, number: int, batch: Batch, counts: Counts) -> Row | None:
        rows = counts.rows
        rows.rows += 1
        rows.place = f"{batch.file}:{number}"
        row = parse(raw, batch.file, number, {batch.text_field: str})
        if isinstance(row, str):
            rows.add_bad(row)
            return None
        text, answers = row[batch.text_field], row.get("answers")
        if isinstance(answers, list) and answers and all(isinstance(answer, str | dict) for answer in answers):
            answers = None  # a question's answers as text, as many sets have them: no spans, and none of our business
        counts.characters_in += len(text)
        if len(text) > self._config.max_characters:
            rows.add_bad(f"more than {self._config.max_characters:,} characters")
            return None
        if answers is not None and not are_spans(answers, len(text)):
            rows.add_bad("answers are no spans of the text")
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
    """`change` of the text, and its spans at their new places.

    The text is changed piece by piece between the spans' edges. Where that is not what changing the whole would give
    (a letter and its accent on two sides of an edge), the text stays as it was written.
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
