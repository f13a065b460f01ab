"""docs/add-a-method.md, followed to the letter in a copy of the checkout."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from training_tiny import run_folders

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "add-a-method.md").read_text(encoding="utf-8")
COPIED = ("common", "distill", "instruct", "export", "eval", "recipes", "studies", "bench", "tests", "pyproject.toml")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with the page's three pieces of code where the page says that they go, and models in my/."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    function, line, reference = blocks("python")
    objectives, methods = folder / "distill" / "objectives.py", folder / "distill" / "methods.py"
    objectives.write_text(objectives.read_text() + "\n\n" + function)
    table = methods.read_text()
    (place,) = re.finditer(r"^METHODS: .*\{\n", table, re.MULTILINE)
    methods.write_text(table[: place.end()] + line + table[place.end() :])
    references = folder / "tests" / "objective_references.py"
    references.write_text(references.read_text() + "\n\n" + reference)
    run_folders(folder / "my")
    return folder


@pytest.mark.parametrize("number", range(3))
def test_its_commands_do_what_it_says(checkout: Path, number: int) -> None:
    command = blocks("bash")[number]
    # This environment's packages, and the copy's modules before the checkout's.
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = command.replace(".venv/bin/python", sys.executable)
    finished = subprocess.run(
        ["bash", "-e", "-c", command], cwd=checkout, env=environment, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    if "pytest" in command:
        passed = re.search(r"(\d+) passed", finished.stdout)
        assert passed and int(passed[1]) >= 8, finished.stdout
    if "distill train" in command:
        assert (checkout / "my" / "hellinger" / "model.safetensors").is_file()


def test_the_page_has_the_commands_that_are_run() -> None:
    assert len(blocks("bash")) == 3 and len(blocks("python")) == 3
