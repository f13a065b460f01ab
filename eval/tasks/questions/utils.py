"""What the task files here name as `!function utils.NAME`: rows of one shape, answers out of outputs, a score.

An answer counts whatever its width: full-width digits and letters are those of ASCII (NFKC), and U+2212 is a minus.
lm-eval loads this module by its path, so it imports nothing of this product.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

NO_ANSWER = "[invalid]"
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_QUOTES = (("「", "」"), ("『", "』"), ('"', '"'), ("'", "'"))
_POLITE = re.compile(r"(?:です|でした)?[。.]?$|(?:だ|である)。$")


def _only(shape: str) -> Callable[[Any], Any]:
    def rows(dataset: Any) -> Any:
        return dataset.select([index for index, found in enumerate(dataset["shape"]) if found == shape])

    return rows


multiple_choice = _only("multiple_choice")
short_answer = _only("short_answer")
reading = _only("reading")
arithmetic = _only("arithmetic")
translation = _only("translation")

jcommonsenseqa = _only("jcommonsenseqa")
jmmlu = _only("jmmlu")
jsquad = _only("jsquad")
jemhopqa = _only("jemhopqa")
niilc = _only("niilc")
mgsm_ja = _only("mgsm_ja")


def folded(text: str) -> str:
    """The text in one width, without blanks around it."""
    return unicodedata.normalize("NFKC", text).replace("\u2212", "-").strip()


def last_number(outputs: Sequence[Sequence[str]], docs: Any) -> list[str]:
    """A filter: the last number of each output, without thousands separators and zeros after the point."""
    return [_last_number(each[0]) for each in outputs]


def short(outputs: Sequence[Sequence[str]], docs: Any) -> list[str]:
    """A filter: the first line of each output that is not empty, without quotation marks and a polite ending."""
    return [_short(each[0]) for each in outputs]


def line(outputs: Sequence[Sequence[str]], docs: Any) -> list[str]:
    """A filter: the first line of each output that is not empty."""
    return [_line(each[0]) for each in outputs]


def exact(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """1 where the answer is one of the doc's `answers`, in any width; numbers are compared as numbers."""
    found, wanted = folded(str(results[0])), [folded(str(answer)) for answer in doc["answers"]]
    same = found in wanted or _as_number(found) in [number for number in map(_as_number, wanted) if number]
    return {"exact_match": float(same and found != NO_ANSWER)}


def _last_number(output: str) -> str:
    numbers = [number for number in map(_as_number, _NUMBER.findall(folded(output))) if number]
    return numbers[-1] if numbers else NO_ANSWER


def _as_number(text: str) -> str | None:
    """The usual spelling of a number, 1,050.0 as 1050; None for other text."""
    if not _NUMBER.fullmatch(text):
        return None
    number = Decimal(text.replace(",", "")).normalize()
    return f"{number + 0:f}"  # -0 is 0


def _line(output: str) -> str:
    return next((line.strip() for line in output.splitlines() if line.strip()), NO_ANSWER)


def _short(output: str) -> str:
    line = _line(output)
    answer = line[: _POLITE.search(line).start()].strip()  # pyright: ignore[reportOptionalMemberAccess]  # matches ""
    for left, right in _QUOTES:
        if len(answer) > 2 and answer[0] == left and answer[-1] == right and left not in answer[1:-1]:
            answer = answer[1:-1].strip()
            break
    return answer or line
