"""Every script of examples/ runs, on folders that are made here and without a network."""

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from docs_tiny import ROOT, TEXTS, rows_of
from export_tiny import write_checkpoint
from training_tiny import run_folders

from common.store import read_manifest, run_alone
from distill.train import distill
from recipes.__main__ import main as recipes
from recipes.loading import load

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return run_folders(tmp_path_factory.mktemp("tiny"))


def example(name: str) -> dict[str, Any]:
    """What a script defines; its `if __name__` is not taken."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_these_are_all_examples() -> None:
    names = ["distill_two_folders", "export_one", "own_recipe"]
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == names


def test_one_folder_is_distilled_into_another(
    tmp_path: Path, tiny: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows_of(tmp_path / "text.jsonl", [{"text": text} for text in TEXTS])
    arguments = [str(path) for path in (tiny["teacher"], tiny["student"], tmp_path / "text.jsonl", tmp_path / "out")]
    example("distill_two_folders")["main"]([*arguments, "--row-tokens", "128", "--steps", "2"])
    facts = read_manifest(tmp_path / "out" / "model")["facts"]
    assert facts["method"] == "taid" and facts["steps"] == 2
    assert f"{tmp_path / 'out' / 'model'}: {facts['tokens']:,} tokens in 2 steps" in capsys.readouterr().out


def test_a_folder_becomes_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_checkpoint(tmp_path / "model")
    example("export_one")["main"]([str(checkpoint), str(tmp_path / "out"), "--encoding", "Q8_0"])
    (file,) = (tmp_path / "out").glob("*.gguf")
    assert file.name == "model-Q8_0.gguf"
    assert f"{file}: {file.stat().st_size:,} bytes" in capsys.readouterr().out


def test_an_own_recipe_is_planned_and_its_changed_stage_trains(
    tmp_path: Path, tiny: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(EXAMPLES / "own_recipe.py")
    recipes([path, "--plan", "--build", str(tmp_path / "build")])
    assert "jensen-shannon" in capsys.readouterr().out
    base = load(path, say=print).base
    assert base is not None
    short = replace(base, steps=2, validate_every=2, checkpoint_every=2)
    made = run_alone(distill, short, tmp_path / "base", tiny["corpus"], tiny["student"], tiny["teacher"])
    assert made.manifest["facts"]["method"] == "jensen_shannon"
