"""Measures of one document for the quality rules: characters, sentences, lines, words and n-grams, counted with numpy.

Letters are kana and kanji; Japanese characters are letters and Japanese punctuation; shares of characters exclude white
space. Texts are in their normal form (`distill.text.normalise`). The thresholds are in `distill.text.quality`.
"""

import re
import tomllib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.ngrams import code_points, window_hashes

_WORDS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("quality_words.toml").read_text(encoding="utf-8"))

# The ends of sentences come last: see Measures.sentences.
_OTHER, _HIRAGANA, _KATAKANA, _KANJI, _PUNCTUATION, _LATIN, _DIGIT, _SPACE, _DAMAGE, _STOP, _LINE_END = range(11)
# Half-open ranges of code points; all others count as symbols. Later classes win.
_CLASSES = {
    _HIRAGANA: ((0x3041, 0x3097), (0x3099, 0x30A0)),
    _KATAKANA: ((0x30A1, 0x30FB), (0x30FC, 0x3100), (0x31F0, 0x3200)),
    _KANJI: ((0x3005, 0x3008), (0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0x20000, 0x32000)),
    _PUNCTUATION: (
        *((0x3001, 0x3005), (0x3008, 0x3021), (0x30A0, 0x30A1), (0x30FB, 0x30FC)),
        *((0xFF01, 0xFF10), (0xFF1A, 0xFF21), (0xFF3B, 0xFF41), (0xFF5B, 0xFF61), (0x2014, 0x2016), (0x2025, 0x2027)),
    ),
    _LATIN: ((0x41, 0x5B), (0x61, 0x7B), (0xC0, 0x250), (0x1E00, 0x1F00)),
    _DIGIT: ((0x30, 0x3A),),
    _SPACE: ((0x09, 0x0E), (0x20, 0x21), (0xA0, 0xA1), (0x2000, 0x200B), (0x3000, 0x3001)),
    _STOP: tuple((code, code + 1) for code in map(ord, "\u3002\uff0e\uff01\uff1f!?")),
    _LINE_END: ((0x0A, 0x0B),),
}


def _class_table() -> NDArray[np.uint8]:
    table = np.full(0x110000, _OTHER, np.uint8)
    for kind, ranges in _CLASSES.items():
        for start, stop in ranges:
            table[start:stop] = kind
    table[[ord(character) for character in _WORDS["damage"]]] = _DAMAGE
    return table


_CLASS_OF = _class_table()
_STOPS = re.compile("[\u3002\uff0e\uff01\uff1f!?]")
# A record: "label: value" with a full-width colon.
_RECORD = re.compile(r"[^\s\uff1a]{1,20}\uff1a\s?\S.{0,59}\Z")
_SEPARATED = re.compile(r"[|\uff5c\xbb\u203a>\u2192]|[^\x00-\x7f][ \u3000/\uff0f][^\x00-\x7f]")
_HIRAGANA_RUNS = re.compile("[\u3041-\u3096]+")
_LETTER_RUNS = re.compile("[\u3041-\u3096\u30a1-\u30fa\u30fc\u3005-\u3007\u3400-\u9fff]+")
# A line cut short by one ellipsis, optionally before "read more"; literature writes two, or goes on after them.
_CUT_SHORT = re.compile(
    r"(?:(?<![\u2026.])(?:\u2026|\.\.\.)|(?<!\u30fb)\u30fb\u30fb\u30fb)"
    rf"[\])\uff3d\uff09]?(?:.{{0,3}}(?:{'|'.join(map(re.escape, _WORDS['read_more']))}))?\Z"
)
_CUT_SHORT_CHARACTERS = 7 + max(map(len, _WORDS["read_more"]))
_CLAUSE_CHARACTERS, _CLAUSE_HIRAGANA_SHARE = 20, 0.35
# Fewer matches are not evidence, whatever their share of a short text.
_LEAST_MATCHES = 3

_LONGEST_FIRST = sorted({*_WORDS["boilerplate"], *_WORDS["unwanted"]}, key=lambda word: (-len(word), word))
_ANY_WORD = re.compile("|".join(map(re.escape, _LONGEST_FIRST)))
_UNWANTED = frozenset(_WORDS["unwanted"])


def _pair_keys(codes: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """A number below 2**16 for each pair of neighbouring characters."""
    return (codes[:-1] * np.uint32(0x9E3B) + codes[1:]) & np.uint32(0xFFFF)


def _pairs_that_open_a_word() -> NDArray[np.bool_]:
    table = np.zeros(2**16, np.bool_)
    for word in _LONGEST_FIRST:
        table[_pair_keys(code_points(word[:2]))] = True
    return table


# One look-up a character finds the few places where a word can begin; only there the pattern is tried.
_OPENS_A_WORD = _pairs_that_open_a_word()


class Measures:
    """The measures of one text, each computed when it is first read."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.codes = code_points(text)
        self._classes = _CLASS_OF[self.codes]
        counts: list[int] = np.bincount(self._classes, minlength=_LINE_END + 1).tolist()
        letters = counts[_HIRAGANA] + counts[_KATAKANA] + counts[_KANJI]
        self.characters = len(self.codes) - counts[_SPACE] - counts[_LINE_END]
        """Without white space."""
        per_character, per_letter = 1 / max(1, self.characters), 1 / max(1, letters)
        self.japanese_share = (letters + counts[_PUNCTUATION] + counts[_STOP]) * per_character
        self.digit_share = counts[_DIGIT] * per_character
        self.symbol_share = counts[_OTHER] * per_character
        self.damage_share = counts[_DAMAGE] * per_character
        self.kana_share = (counts[_HIRAGANA] + counts[_KATAKANA]) * per_letter
        self.hiragana_share = counts[_HIRAGANA] * per_letter
        self.katakana_share = counts[_KATAKANA] * per_letter

    @cached_property
    def sentences(self) -> NDArray[np.int64]:
        """Lengths of all sentences with their ends, characters; a closing bracket after an end is not a sentence."""
        ends = np.flatnonzero(self._classes >= _STOP)
        stops = np.concatenate((ends + (self._classes[ends] != _LINE_END), [len(self.codes)]))
        lengths = stops.copy()
        lengths[1:] -= ends + 1
        return lengths[lengths > 1]

    @cached_property
    def lines(self) -> list[str]:
        """All lines that are not blank."""
        return [line for line in self.text.split("\n") if line and not line.isspace()]

    @cached_property
    def line_characters(self) -> int:
        """Characters of all lines."""
        return max(1, sum(map(len, self.lines)))

    @cached_property
    def prose_share(self) -> float:
        """Characters in lines with a statement, of those in all lines."""
        return sum(len(line) for line in self.lines if _says_something(line)) / self.line_characters

    @cached_property
    def ellipsis_share(self) -> float:
        """Lines cut short by an ellipsis, of all lines."""
        cut = sum(1 for line in self.lines if _CUT_SHORT.search(line, max(0, len(line) - _CUT_SHORT_CHARACTERS)))
        return cut / max(1, len(self.lines))

    @cached_property
    def duplicate_lines(self) -> tuple[float, float]:
        """Lines that repeat an earlier line: their share of the lines, and of the characters of all lines."""
        different = set(self.lines)
        lines = len(self.lines) - len(different)
        characters = sum(map(len, self.lines)) - sum(map(len, different))
        return lines / max(1, len(self.lines)), characters / self.line_characters

    @cached_property
    def word_shares(self) -> tuple[float, float]:
        """Characters in boilerplate and in unwanted words, of all; 0 if there are too few of these words."""
        found = ([0, 0], [0, 0])
        done = 0
        for place in np.flatnonzero(_OPENS_A_WORD[_pair_keys(self.codes)]).tolist():
            if place >= done and (match := _ANY_WORD.match(self.text, place)):
                done = match.end()
                kind = found[match[0] in _UNWANTED]
                kind[0] += 1
                kind[1] += done - place
        boilerplate, unwanted = (
            characters / max(1, self.characters) if matches >= _LEAST_MATCHES else 0.0 for matches, characters in found
        )
        return boilerplate, unwanted

    def has_top_gram(self, size: int, share: float) -> bool:
        """Whether one n-gram occurs more than once and has more than `share` of all occurrences.

        A frequent n-gram needs frequent characters: the most frequent character alone excludes most texts.
        """
        windows = len(self.codes) - size + 1
        if windows < 1:
            return False
        times = max(2, int(share * windows) + 1)
        return _occurs(self._ordered_codes, times) and _occurs(np.sort(window_hashes(self.codes, size)), times)

    @cached_property
    def _ordered_codes(self) -> NDArray[np.uint32]:
        return np.sort(self.codes)

    def duplicate_gram_share(self, size: int) -> float:
        """N-grams that occur more than once, of all n-grams."""
        ordered = np.sort(window_hashes(self.codes, size))
        if len(ordered) < 2:
            return 0.0
        same = ordered[1:] == ordered[:-1]
        runs = int(same[0]) + np.count_nonzero(same[1:] & ~same[:-1])
        return (np.count_nonzero(same) + runs) / len(ordered)


def _occurs(ordered: NDArray[Any], times: int) -> bool:
    """Whether some value occurs at least `times` times in a sorted array."""
    return bool((ordered[times - 1 :] == ordered[: len(ordered) - times + 1]).any())


def _says_something(line: str) -> bool:
    if _STOPS.search(line) or _RECORD.match(line):
        return True
    if len(line) < _CLAUSE_CHARACTERS or _SEPARATED.search(line):
        return False
    letters = sum(map(len, _LETTER_RUNS.findall(line)))
    hiragana = sum(map(len, _HIRAGANA_RUNS.findall(line)))
    return letters >= _CLAUSE_CHARACTERS / 2 and hiragana >= _CLAUSE_HIRAGANA_SHARE * letters
