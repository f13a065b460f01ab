"""docs/reproduce.md: its plan, its Python and the recipes that it names; the long runs stand there as not run."""

import re
import subprocess
import sys
from pathlib import Path

from recipes.loading import KNOWN, load

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{re.escape(language)}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_the_plan_that_it_shows_is_printed_without_a_download() -> None:
    assert blocks("bash") == ["make plan\n"]  # of which this is the second half, without the set-up
    command = [sys.executable, "-m", "recipes", "auto", "--plan"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for word in ("Operations", "H100", "lmsys/lmsys-chat-1m", "Apache-2.0", "assumed", "computed"):
        assert word in done.stdout, word


def test_its_python_runs(tmp_path: Path) -> None:
    resizing, teacher = blocks("python")
    compile(resizing, "reproduce.md", "exec")
    names = re.findall(r'"([\w.]+)": \d', resizing)
    from recipes.resizing import resized
    from recipes.tinyswallow import tinyswallow

    assert names and resized(tinyswallow(), dict.fromkeys(names, 4)).base is not None
    file = tmp_path / "mine.py"
    file.write_text(teacher, encoding="utf-8")
    assert "72B" in str(load(str(file), say=print).models["teacher"].model.name)


def test_every_recipe_that_it_names_is_known_and_every_long_command_is_marked() -> None:
    named = set(re.findall(r"RECIPE=(\w+)", PAGE))
    assert {"tinyswallow", "qwen3", "rehearsal", "japanese_teacher"} == named <= set(KNOWN)
    for block in blocks("bash not run"):
        assert re.search(r"^(git|export|make|hf) ", block, re.MULTILINE)


def test_its_table_is_the_published_one() -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith("| TinySwallow-1.5B-Instruct "))
    assert re.findall(r"\.\d{3}", row) == [".803", ".345", ".447", ".856", ".308", ".461"]
