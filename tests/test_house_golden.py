"""Help and errors of every command are those in tests/golden/, which `python tests/golden_tiny.py` writes again."""

import difflib
import re
from pathlib import Path

import pytest
from golden_tiny import GOLDEN, MISTAKES, page

ROOT = Path(__file__).parents[1]


def test_every_command_has_a_file() -> None:
    paths = [path.relative_to(ROOT) for path in ROOT.glob("[!.]*/**/*.py") if path.parts[-2] != "examples"]
    starts = [path for path in paths if re.search(r"^    run\(main\)$", (ROOT / path).read_text("utf-8"), re.MULTILINE)]
    commands = {".".join(path.with_suffix("").parts).removesuffix(".__main__") for path in starts}
    assert commands == set(MISTAKES) == {path.stem for path in GOLDEN.glob("*.txt")}


@pytest.mark.parametrize("command", MISTAKES)
def test_help_and_errors_are_as_kept(command: str) -> None:
    kept, made = (GOLDEN / f"{command}.txt").read_text(encoding="utf-8"), page(command)
    # Word by word: Python's versions wrap a long usage at different places.
    difference = difflib.unified_diff(kept.splitlines(), made.splitlines(), "kept", "now", lineterm="")
    assert made.split() == kept.split(), "\n".join(difference)
