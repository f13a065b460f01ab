"""Finds benchmark items in training text by character n-grams.

Both sides are brought to one form first: NFKC, case folded, letters and digits only. Line breaks, spaces, widths and
punctuation therefore make no difference. A document holds an item when it holds one of the item's texts:

- A long text (a passage, or a question of at least `min_characters`) is found by its n-grams: a share of `min_overlap`
  of them occurs in the document within twice the text's length, so that stock phrases spread over a long document do
  not add up. For a question that is just long enough this means the exact wording. The first turn of a question of
  several turns counts too: in a conversation an answer separates the turns.
- A short question is a sequence of ordinary words once the punctuation is gone: the words of "What is red?" also open
  "What is red must be ...". It counts only where the document ends it as a question, too: by a question mark if the
  benchmark has one, else by any sign, space or end.
- A very short question (below `min_alone_characters`) is a stock phrase even with its mark: "And today?". Without an
  answer it reveals nothing, so it counts only near one of its answers or two of its choices, or where it is the whole
  document. `too_short` counts the items that have no longer text.

Answers alone are not searched for: most of them are one word. Independent of file formats and training stages.

`normal_form` is the one form, `search` has the two searches, and this module the settings.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import require_above, require_at_least, require_between
from eval.decontamination.normal_form import document_of, is_marked, normal_form
from eval.decontamination.search import SHORTEST, LongTexts, ShortQuestion, ShortQuestions, is_long
from eval.tasks.items import TURN_BREAK, Item, read_benchmarks

__all__ = ["DecontaminationConfig", "Decontaminator", "normal_form"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DecontaminationConfig:
    """When a document holds a benchmark item. Characters are letters and digits, in normal form."""

    ngram_characters: int = 10
    """Length of an n-gram, from 1 to `min_characters`."""
    min_overlap: float = 0.8
    """Share of a text's n-grams that must occur in the document, above 0 and at most 1."""
    min_characters: int = 10
    """Length from which a question counts by its n-grams."""
    min_alone_characters: int = 5
    """Length from which a question that ends as a question counts without its answer; from 2 to `min_characters`."""
    near_characters: int = 100
    """How far from a shorter question its answer or choices are searched for, and how much of each."""

    def __post_init__(self) -> None:
        require_between(1, self.min_characters, ngram_characters=self.ngram_characters)
        require_between(SHORTEST, self.min_characters, min_alone_characters=self.min_alone_characters)
        require_at_least(1, near_characters=self.near_characters)
        require_above(0, min_overlap=self.min_overlap)
        require_between(0, 1, min_overlap=self.min_overlap)


class Decontaminator:
    """The items of all benchmarks, ready for the search. It can be sent to other processes."""

    num_items: dict[str, int]
    """Items of each benchmark."""
    too_short: dict[str, int]
    """How many of them have only texts that are too short to count by themselves, or only repeat themselves."""

    def __init__(self, benchmarks: Mapping[str, Sequence[Item]], config: DecontaminationConfig) -> None:
        self._names = list(benchmarks)
        self.num_items = {name: len(items) for name, items in benchmarks.items()}
        self.too_short = dict.fromkeys(benchmarks, 0)
        ngram, near, alone = config.ngram_characters, config.near_characters, config.min_alone_characters
        long: dict[str, int] = {}
        marked: dict[str, list[ShortQuestion]] = {}
        unmarked: dict[str, list[ShortQuestion]] = {}
        for number, (name, items) in enumerate(benchmarks.items()):
            for item in items:
                counts_alone = False
                for text in map(normal_form, _texts(item)):
                    if text in long or is_long(text, ngram_characters=ngram, min_characters=config.min_characters):
                        long.setdefault(text, number)
                        counts_alone = True
                words = normal_form(item.question)
                if SHORTEST <= len(words) < config.min_characters:
                    short = marked if is_marked(item.question) else unmarked
                    short.setdefault(words, []).append(ShortQuestion.of(item, number, near_characters=near))
                    counts_alone |= len(words) >= alone
                self.too_short[name] += not counts_alone
        self._long = LongTexts(long, ngram_characters=ngram, min_overlap=config.min_overlap)
        self._marked, self._unmarked = (
            ShortQuestions(questions, min_alone_characters=alone, near_characters=near)
            for questions in (marked, unmarked)
        )

    @classmethod
    def from_folder(cls, folder: Path, config: DecontaminationConfig) -> "Decontaminator":
        """Reads the benchmark files of a folder; `read_benchmarks` says which, and what it raises."""
        return cls(read_benchmarks(folder), config)

    def card(self) -> dict[str, dict[str, int]]:
        """`{benchmark: {items, too_short}}` for a data card: what its texts were compared with."""
        return {name: {"items": count, "too_short": self.too_short[name]} for name, count in self.num_items.items()}

    def find(self, text: str) -> str | None:
        """The benchmark of which the text holds an item, that of the longest match where there are several, or None."""
        document = document_of(text)
        number = self._long.find(document.codes)
        if number is None:
            number = self._marked.find(document, document.mark_ends)
        if number is None:
            number = self._unmarked.find(document, document.ends)
        return None if number is None else self._names[number]


def _texts(item: Item) -> Iterator[str]:
    """The texts each of which reveals the item."""
    yield item.question
    first, separator, _ = item.question.partition(TURN_BREAK)
    if separator:
        yield first
    if item.context is not None:
        yield item.context
