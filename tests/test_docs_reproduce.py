"""docs/reproduce.md: its plan and the plan's figures, its Python and the recipes and sources that it names.

The long runs stand there as not run.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eval.report.stage import differences
from recipes.loading import KNOWN, load
from recipes.plan import plan_of
from recipes.plan.cost import gpus
from recipes.tinyswallow import BASE, CHAT, TEXT_FILES, tinyswallow

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{re.escape(language)}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_the_plan_that_it_shows_is_printed_without_a_download() -> None:
    assert blocks("bash") == ["make plan\n"]  # of which this is the second half, without the set-up
    command = [sys.executable, "-m", "recipes", "auto", "--plan"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for word in ("FLOPs", "H100", "lmsys/lmsys-chat-1m", "Apache-2.0", "assumed", "computed"):
        assert word in done.stdout, word


def test_the_figures_that_it_repeats_are_the_plans(tmp_path: Path) -> None:
    plan = plan_of(tinyswallow(), build_folder=tmp_path, sources=None)
    hours = {gpu.name.split(" ")[0]: plan.hours(gpu) for gpu in gpus()}
    assert round(hours["H100"]) == round(hours["H200"])
    fits = ", ".join(f"{fit.devices} x {fit.memory_bytes / 1e9:.0f}" for fit in plan.fits() if fit.fits)
    figures = {
        "training on one H200 or H100, hours": f"{hours['H200']:.0f}",
        "training on A100s, hours": f"{hours['A100']:.0f}",
        "memory of one GPU that holds everything, GB": f"{plan.needs.gpu_bytes / 1e9:.0f}",
        "machines that hold it, GPUs x GB": fits,
        "main memory, GB": f"{plan.needs.ram_bytes / 1e9:.0f}",
        "disk at one time, GB": f"{plan.needs.disk_bytes / 1e9:.0f}",
        "downloads whose sizes are known, GB": f"{plan.download_bytes / 1e9:.0f}",
    }
    shown = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", PAGE, re.MULTILINE))
    for what, figure in figures.items():
        (found,) = [value for name, value in shown.items() if name.startswith(what)]
        assert found == figure, what
    assert all(gpu.utilisation == 0.4 and gpu.basis == "assumed" for gpu in gpus() if gpu.name[:4] in ("H100", "H200"))


def test_its_python_runs(tmp_path: Path) -> None:
    resizing, teacher = blocks("python")
    compile(resizing, "reproduce.md", "exec")
    names = re.findall(r'"([\w.]+)": \d', resizing)
    from recipes.resizing import resized

    assert names and resized(tinyswallow(), dict.fromkeys(names, 4)).base is not None
    file = tmp_path / "mine.py"
    file.write_text(teacher, encoding="utf-8")
    mine, card = load(str(file), say=print), tinyswallow().dist.card
    model, release = mine.published_models["teacher"], tinyswallow()
    assert model.terms.licence == "Apache-2.0" and "14B" in model.terms.name and mine.name not in KNOWN
    assert mine.dist.card is not None and card is not None
    assert model.terms.name in mine.dist.card.base_models and "14B" in str(mine.dist.card.description_ja)
    assert mine.dist.card.title == mine.gguf.stem == mine.coreml.stem != release.gguf.stem
    said = {choice.what: choice.value for choice in mine.report.choices}
    assert mine.report.choices == mine.dist.card.choices and said["teacher"] == model.terms.name
    built = {"gguf": {"config": {"stem": mine.gguf.stem}}}
    assert not any(differences(choice, built) for choice in mine.report.choices)


def test_every_recipe_that_it_names_is_known_and_every_long_command_is_marked() -> None:
    named = set(re.findall(r"RECIPE=(\w+)", PAGE))
    assert {"tinyswallow", "qwen3", "rehearsal", "japanese_teacher"} == named <= set(KNOWN)
    for block in blocks("bash not run"):
        assert re.search(r"^(git|export|make|hf|sudo) ", block, re.MULTILINE)


def test_a_node_without_internet_is_told_every_source() -> None:
    (offline,) = [block for block in blocks("bash not run") if "--until benchmarks" in block]
    fetched = dict(re.findall(r"^hf download (\S+) (.*)$", offline, re.MULTILINE))
    recipe: Any = tinyswallow()
    sources = (*recipe.corpus.sources, *recipe.conversations.sources)
    sets = {source.files.name for source in sources} | {"lmsys/lmsys-chat-1m"}
    assert fetched.keys() == sets | {model.terms.name for model in recipe.published_models.values()}
    for name, options in fetched.items():
        assert options.endswith(f"--local-dir sources/{name}")
        assert ("--repo-type dataset" in options) == (name in sets)
    assert TEXT_FILES == 1 and "/000_00000.parquet'" in fetched["HuggingFaceFW/fineweb-2"]


@pytest.mark.parametrize(("stage", "what"), [(BASE, "of the distillation"), (CHAT, "of the tuning")])
def test_checkpoints_are_as_frequent_as_it_says(stage: object, what: str) -> None:
    (steps,) = re.findall(rf"every (\d+) (?:steps )?{what}", PAGE)
    assert int(steps) == getattr(stage, "checkpoint_every")  # noqa: B009 - two configs that share no class


def test_its_table_is_the_published_one() -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith("| TinySwallow-1.5B-Instruct "))
    assert re.findall(r"\.\d{3}", row) == [".803", ".345", ".447", ".856", ".308", ".461"]
