"""Finds short questions by their words, where a document ends them as questions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.ngrams import code_points
from eval.decontamination.normal_form import Document, normal_form
from eval.tasks.items import Item

SHORTEST = 2
"""Characters of the shortest question that is searched for at all."""
_CODE_BITS = np.uint64(21)  # of a code point
_CLOSING_BITS = np.uint32((1 << 16) - 1)  # enough of it to reject what no question ends with


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
    """Searches for many questions in one pass, by their last characters first.

    Args:
        questions: by their words in normal form, at least `SHORTEST` characters each.
        min_alone_characters: length from which a question counts without its answer.
        near_characters: how far from a shorter one its answer or choices are searched for.
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
