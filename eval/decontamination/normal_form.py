"""The form in which texts are compared: NFKC, case folded, letters and digits only; fast for whole documents.

Normalising by the library costs more than everything else together. It is needed only where one character joins
another or becomes several: a table of single characters says where, and handles the rest.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from common.ngrams import code_points

# An entry of the table: the code point that replaces this one, 0 for none, or one of these.
_MARK = np.uint32(1 << 22)  # dropped, but it is a question mark
_HARD = np.uint32(1 << 31)  # a flag on the entry: it may join the one before it, or become several
_TABLE_END = 0x34000  # from here on Unicode has no letters or digits, and nothing that normalising changes


@dataclass(frozen=True, slots=True)
class Document:
    """A text in normal form."""

    codes: NDArray[np.uint32]
    """Its code points."""
    mark_ends: NDArray[np.intp]
    """Number of code points before each question mark that is left out."""
    ends: NDArray[np.intp]
    """Number of code points before each sign, space or line end that is left out, and before the end."""

    def slice(self, start: int, end: int) -> str:
        """Characters from `start` (from the first where it is negative) up to `end`."""
        return self.codes[max(start, 0) : end].tobytes().decode("utf-32-le", "surrogatepass")


def document_of(text: str) -> Document:
    """`normal_form(text)` with the places of what it leaves out."""
    table = _table()
    codes = table.take(code_points(text))
    if codes.size and codes.max() >= _HARD:
        # What is hard even now joins nothing: it replaces itself.
        codes = table.take(code_points(_case_folded(text))) & ~_HARD
    kept = (codes - np.uint32(1)) < _MARK - np.uint32(1)  # 0 wraps round
    left_out = np.flatnonzero(~kept)
    # Before the j-th that is left out, its position minus j are kept.
    before = left_out - np.arange(left_out.size)
    normal = codes.compress(kept)
    return Document(normal, before[codes[left_out] == _MARK], np.append(before, normal.size))


def normal_form(text: str) -> str:
    """NFKC, case folded, letters and digits only."""
    return "".join(filter(str.isalnum, _case_folded(text)))


def is_marked(question: str) -> bool:
    """Whether a question mark follows the last letter or digit."""
    return "?" in re.split(r"[^\W_]", _case_folded(question))[-1]


def _case_folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


@cache
def _table() -> NDArray[np.uint32]:
    joining = {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}  # vowels and finals of Hangul, which are joined by rule
    for code in range(_TABLE_END):
        parts = unicodedata.decomposition(chr(code)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            joining.add(int(parts[1], 16))
    # All at once, one a line: one call instead of 200,000. Nothing joins a line feed.
    codes = [code for code in range(_TABLE_END) if chr(code) != "\n"]
    table = np.zeros(0x110000, np.uint32)
    for code, normal in zip(codes, unicodedata.normalize("NFKC", "\n".join(map(chr, codes))).split("\n"), strict=True):
        kept = "".join(filter(str.isalnum, normal.casefold()))
        entry = ord(kept[0]) if kept else int(_MARK) * ("?" in normal)
        if len(kept) > 1 or ord(normal[0]) in joining:
            entry = int(_HARD) | (code if chr(code).isalnum() else 0)
        table[code] = entry
    return table
