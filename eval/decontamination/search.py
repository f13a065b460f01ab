"""Two searches in a document in normal form: long texts by their n-grams, short questions by their words.

A short question counts only where the document ends it as a question. Each search looks for many texts in one pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from common.ngrams import code_points, window_hashes
from eval.decontamination.normal_form import Document, normal_form
from eval.tasks.items import Item

SHORTEST = 2
"""Characters of the shortest question that is searched for at all."""
_FILTER_BITS = (12, 24)
_CODE_BITS = np.uint64(21)  # of a code point
_CLOSING_BITS = np.uint32((1 << 16) - 1)  # enough of it to reject what no question ends with


def is_long(text: str, *, ngram_characters: int, min_characters: int) -> bool:
    """Whether a text in normal form has `min_characters`, and does not only repeat itself."""
    num_windows = len(text) - ngram_characters + 1
    ngrams = {text[start : start + ngram_characters] for start in range(num_windows)}
    return len(text) >= min_characters and 2 * len(ngrams) >= num_windows


class LongTexts:
    """Searches for many texts in normal form, each with the number that `find` returns for it, by their n-grams.

    A document holds a text if it has `min_overlap` of its n-grams, as a share above 0 and at most 1.

    Each n-gram has a run of "holdings": a holding is one text that holds it, identified by its row in one array. A
    table of booleans, read once by the first and once by the last bits of the hash, rejects nearly every n-gram of a
    document that no text has.
    """

    def __init__(self, texts: Mapping[str, int], *, ngram_characters: int, min_overlap: float) -> None:
        self._size = ngram_characters
        self._results = list(texts.values())
        self._lengths = np.array([len(text) for text in texts], np.int64)
        owners = np.repeat(np.arange(self._lengths.size), self._lengths)
        hashes = window_hashes(code_points("".join(texts)), self._size)
        # A window that reaches into the next text belongs to neither.
        inside = owners[: hashes.size] == owners[self._size - 1 :][: hashes.size]
        holdings = np.zeros(int(inside.sum()), [("hash", np.uint64), ("owner", np.int64)])
        holdings["hash"], holdings["owner"] = hashes[inside], owners[: hashes.size][inside]
        holdings = np.unique(holdings)
        self._owners = np.ascontiguousarray(holdings["owner"])
        self._ngrams, starts = np.unique(holdings["hash"], return_index=True)
        self._starts = np.append(starts, holdings.size)
        counts = np.bincount(self._owners, minlength=self._lengths.size)
        # Minus a tolerance: 0.56 times 25 is more than 14 in binary.
        self._needed = np.array([ceil(min_overlap * count - 1e-9) for count in counts], np.int64)
        self._least_needed = np.minimum.reduceat(self._needed[self._owners], starts) if texts else self._needed
        bits = min(max(int(self._ngrams.size * 32).bit_length(), _FILTER_BITS[0]), _FILTER_BITS[1])
        self._shift, self._mask = np.uint64(64 - bits), np.uint64((1 << bits) - 1)
        self._may_be = np.zeros(1 << bits, np.bool_)
        self._may_be[self._ngrams >> self._shift] = True
        self._may_be[self._ngrams & self._mask] = True

    def find(self, codes: NDArray[np.uint32]) -> int | None:
        """The number of the text with the most n-grams in the document, of those that have enough."""
        if not self._results:
            return None
        hashes = window_hashes(codes, self._size)
        places = np.flatnonzero(self._may_be.take((hashes >> self._shift).view(np.int64)))
        hashes = hashes[places]
        again = self._may_be[hashes & self._mask]
        places, hashes = places[again], hashes[again]
        rows = np.minimum(np.searchsorted(self._ngrams, hashes), self._ngrams.size - 1)
        known = self._ngrams[rows] == hashes
        rows, places = rows[known], places[known]
        if not rows.size or rows.size < self._least_needed[rows].min():
            return None
        counts = self._starts[rows + 1] - self._starts[rows]
        # All holdings of all rows: each run counts up from its start.
        run_starts = np.repeat(self._starts[rows] - np.cumsum(counts) + counts, counts)
        holdings = run_starts + np.arange(run_starts.size)
        owners, hits = np.unique(self._owners[holdings], return_counts=True)
        owners = owners[hits >= self._needed[owners]]
        if not owners.size:
            return None
        hopeful = np.isin(self._owners[holdings], owners)
        return self._best(holdings[hopeful], np.repeat(places, counts)[hopeful])

    def _best(self, holdings: NDArray[np.int64], places: NDArray[np.int64]) -> int | None:
        """Counts the different n-grams of each text in stretches of twice its length that overlap by half."""
        stretches = places // self._lengths[self._owners[holdings]] + 1
        keys = np.concatenate([stretches, stretches - 1]) * self._owners.size + np.tile(holdings, 2)
        stretches, holdings = np.divmod(np.unique(keys), self._owners.size)
        keys, counts = np.unique(stretches * self._lengths.size + self._owners[holdings], return_counts=True)
        owners = keys % self._lengths.size
        counts = np.where(counts >= self._needed[owners], counts, 0)
        best = int(counts.argmax())
        return self._results[owners[best]] if counts[best] else None


@dataclass(frozen=True, slots=True)
class ShortQuestion:
    """What identifies a question besides its words."""

    result: int
    """What `find` returns for it."""
    answers: tuple[str, ...]
    choices: tuple[str, ...]

    @classmethod
    def of(cls, item: Item, result: int, *, near_characters: int) -> "ShortQuestion":
        """Keeps the first `near_characters` of each answer and choice."""
        answers, choices = (
            tuple({normal[:near_characters]: None for normal in map(normal_form, texts) if normal})
            for texts in (item.answers, item.choices)
        )
        return cls(result, answers, choices)

    def is_given_away(self, surroundings: str) -> bool:
        """Whether an answer or two choices occur there."""
        num_choices = sum(choice in surroundings for choice in self.choices)
        return num_choices >= 2 or any(answer in surroundings for answer in self.answers)


class ShortQuestions:
    """Searches for many questions, given by their words in normal form, by their last characters first.

    A question shorter than `min_alone_characters` (all have `SHORTEST` at least) counts only with its answer or choices
    within `near_characters`.
    """

    def __init__(
        self, questions: Mapping[str, Sequence[ShortQuestion]], *, min_alone_characters: int, near_characters: int
    ) -> None:
        self._questions, self._alone, self._near = questions, min_alone_characters, near_characters
        self._lengths = sorted({len(words) for words in questions}, reverse=True)
        codes = code_points("".join(questions))
        ends = np.cumsum([len(words) for words in questions], dtype=np.intp)
        self._may_close = np.zeros(_CLOSING_BITS + 1, np.bool_)
        self._may_close[codes[ends - 1] & _CLOSING_BITS] = True
        self._keys = np.unique(_last_characters(codes, ends))

    def find(self, document: Document, ends: NDArray[np.intp]) -> int | None:
        """The result of the first question that ends at one of `ends`; of several at one end, of the longest."""
        if not self._questions or not ends.size or document.codes.size < SHORTEST:
            return None
        ends = ends[self._may_close.take(document.codes.take(ends - 1) & _CLOSING_BITS)]
        # At the first characters this wraps to the last ones; the words decide below.
        keys = _last_characters(document.codes, ends)
        rows = np.minimum(np.searchsorted(self._keys, keys), self._keys.size - 1)
        for end in ends[self._keys[rows] == keys].tolist():
            before = document.slice(end - self._lengths[0], end)
            for words in (before[-length:] for length in self._lengths):
                for question in self._questions.get(words, ()):
                    if self._counts(question, document, end - len(words), end):
                        return question.result
        return None

    def _counts(self, question: ShortQuestion, document: Document, start: int, end: int) -> bool:
        if end - start >= self._alone or end - start == document.codes.size:
            return True
        before, after = document.slice(start - self._near, start), document.slice(end, end + self._near)
        # The space keeps the two sides apart: no text in normal form holds one.
        return question.is_given_away(f"{before} {after}")


def _last_characters(codes: NDArray[np.uint32], ends: NDArray[np.intp]) -> NDArray[np.uint64]:
    """The two characters before each end, as one number."""
    return (codes[ends - 2].astype(np.uint64) << _CODE_BITS) | codes[ends - 1]
