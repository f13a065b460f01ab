"""What the known publishers' terms ask for, in Japanese: a reader of the Japanese card must be able to read the duties.

The sentences in `templates/duties.toml` sum up as the English ones do; the publishers' own texts
decide. A duty that is not listed there is shown in the words in which its source states it. It knows no source.
"""

import tomllib
from functools import cache
from pathlib import Path

_DUTIES_FILE = Path(__file__).parent / "templates" / "duties.toml"


def in_japanese(duty: str) -> str:
    """A duty in Japanese; the duty itself where no translation is known."""
    return _translations().get(duty, duty)


@cache
def _translations() -> dict[str, str]:
    listed = tomllib.loads(_DUTIES_FILE.read_text(encoding="utf-8"))["duty"]
    return {duty["english"]: duty["japanese"] for duty in listed}
