"""`python -m recipes`: what it builds, prints, publishes and refuses.

The pipeline here is a toy of three stages in the place of `recipes.recipe`; the real one has its own tests.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from errors_tiny import refuses

from common.device import Machine
from common.disk import sha256_of
from common.errors import UserError
from common.store import Artifact, Store, Workspace, stage
from recipes.__main__ import main, shown
from recipes.loading import KNOWN, load
from recipes.plan.machine import BuildState
from recipes.publish import publish
from recipes.resolve import Unresolved
from recipes.tinyswallow import tinyswallow

ROOT = Path(__file__).parents[1]
MACHINE = Machine(
    device="cpu", compute_dtype="float32", cpu="any", gpu=None, memory_bytes=1, os="any", threads=1
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Deep:
    rate: float = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    name: str = "toy"
    text: str = "x"
    deep: Deep = Deep()
    several: tuple[Deep, ...] = (Deep(rate=1.0), Deep(rate=2.0))
    file: Path = Path("a/b.txt")

    @property
    def chat(self) -> None:
        """Not random weights, so that no build prints figures."""


@stage(version=1)
def write(config: str, workspace: Workspace, *inputs: Path) -> dict[str, Any]:
    (workspace.folder / "report.html").write_text(config)
    (workspace.folder / "deep").mkdir(exist_ok=True)
    (workspace.folder / "deep" / "model.gguf").write_text(config * 2)
    return {"tokens_per_s": 10.0}


def build(recipe: Recipe, store: Store, *, until: str | None = None) -> dict[str, Artifact]:
    done: dict[str, Artifact] = {}
    for name in ("corpus", "base", "dist"):
        done[name] = store.build(name, write, recipe.text, *done.values())
        if name == until:
            break
    return done


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr("recipes.recipe.Recipe", Recipe)
    monkeypatch.setattr("recipes.recipe.build", build)
    monkeypatch.setattr("recipes.resolve.resolve", lambda recipe, folder, until: recipe)
    monkeypatch.setattr("common.store.building.probe", lambda record: MACHINE)
    monkeypatch.setattr("recipes.preflight.before_start", lambda recipe, **how: None)
    monkeypatch.chdir(tmp_path)
    return write_recipe("x")


def write_recipe(text: str, *, name: str = "recipe.py") -> Path:
    lines = ["from recipes.recipe import Recipe", f"def recipe(): return Recipe(text={text!r})"]
    Path(name).write_text("\n".join(lines))
    return Path(name)


def published() -> dict[str, str]:
    folder = Path("dist/toy")
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_builds_publishes_and_says_where(capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipe.py"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["corpus", "base", "dist", "total"]
    assert all("10 tok/s" in line and "peak" in line for line in lines[:3])
    assert re.search(r"\d s  deliverables in dist/toy, report in dist/toy/report\.html$", lines[3])
    assert published() == {"report.html": "x", "deep/model.gguf": "xx"}
    assert sorted(path.name for path in Path().iterdir()) == ["build", "dist", "recipe.py"]
    assert sorted(path.name for path in Path("dist").iterdir()) == [".toy.json", "toy"]


def test_second_run_finds_everything_done_and_touches_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipe.py"])
    before = {path: path.stat().st_ino for path in Path("dist").rglob("*")}
    capsys.readouterr()
    main(["recipe.py"])
    assert capsys.readouterr().out.count("done before") == 3
    assert before == {path: path.stat().st_ino for path in Path("dist").rglob("*")}


def test_until_stops_and_publishes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipe.py", "--until", "base", "--build", "elsewhere"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["corpus", "base", "total"]
    assert "base in elsewhere/base-" in lines[-1]
    assert not Path("dist").exists() and not Path("build").exists()


def test_a_changed_recipe_replaces_the_published_files_as_a_whole() -> None:
    main(["recipe.py"])
    write_recipe("y")
    main(["recipe.py"])
    assert published() == {"report.html": "y", "deep/model.gguf": "yy"}
    assert sorted(path.name for path in Path("dist").iterdir()) == [".toy.json", "toy"]


def test_files_that_somebody_put_there_are_kept_and_changed_ones_named(capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipe.py"])
    Path("dist/toy/mine").mkdir()
    Path("dist/toy/mine/scores.json").write_text("{}")
    Path("dist/toy/.DS_Store").write_text("of a file browser")
    before = Path("dist/toy").stat().st_ino
    capsys.readouterr()
    main(["recipe.py"])
    assert Path("dist/toy").stat().st_ino == before and "kept" not in capsys.readouterr().out
    Path("dist/toy/report.html").write_text("edited")
    write_recipe("y")
    main(["recipe.py"])
    assert published() == {"report.html": "y", "deep/model.gguf": "yy", "mine/scores.json": "{}"}
    said = capsys.readouterr().out
    assert "kept dist/toy/mine/scores.json, which the build did not make" in said
    assert "dist/toy/report.html is the build's again" in said and "model.gguf is" not in said


def test_a_published_file_that_was_damaged_is_published_again() -> None:
    main(["recipe.py"])
    Path("dist/toy/report.html").write_text("z")  # into the file: what was built must not change with it
    main(["recipe.py"])
    assert published()["report.html"] == "x"


def test_what_a_killed_publication_left_is_swept_away() -> None:
    for name in (".toy.new", ".toy.old"):
        (Path("dist") / name).mkdir(parents=True)
        (Path("dist") / name / "half.gguf").write_text("h")
    main(["recipe.py", "--dist", "dist"])
    assert sorted(path.name for path in Path("dist").iterdir()) == [".toy.json", "toy"]
    assert published() == {"report.html": "x", "deep/model.gguf": "xx"}


@stage(version=1)
def write_release(config: str, workspace: Workspace) -> dict[str, Any]:
    (workspace.folder / "model.gguf").write_text(config)
    (workspace.folder / "SHA256SUMS").write_text(f"{sha256_of(workspace.folder / 'model.gguf')}  model.gguf\n")
    return {}


def test_a_licence_text_that_was_added_by_hand_stays_with_its_sum() -> None:
    """As docs/publish.md tells to: the build goes on, and a later release keeps the text."""
    store, folder, said = Store(Path("build"), report=lambda line: None), Path("dist/toy"), list[str]()
    publish(store.build("dist", write_release, "x"), folder, say=said.append)
    text = folder / "licences" / "org--set" / "TERMS"
    text.parent.mkdir(parents=True)
    text.write_text("terms")
    with (folder / "SHA256SUMS").open("a") as sums:
        sums.write(f"{sha256_of(text)}  licences/org--set/TERMS\n")
    before = {path: path.stat().st_ino for path in folder.rglob("*")}
    publish(store.build("dist", write_release, "x"), folder, say=said.append)
    assert before == {path: path.stat().st_ino for path in folder.rglob("*")} and said == []
    publish(store.build("dist", write_release, "y"), folder, say=said.append)
    assert said == ["kept dist/toy/licences/org--set/TERMS, which the build did not make"]
    assert text.read_text() == "terms" and (folder / "model.gguf").read_text() == "y"
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    assert (folder / "SHA256SUMS").read_text().count("\n") == 2


@stage(version=1)
def write_with_text(config: str, workspace: Workspace) -> dict[str, Any]:
    text = workspace.folder / "licences" / f"org--{config}" / "LICENSE"
    text.parent.mkdir(parents=True)
    text.write_text(config)
    return write_release(config, workspace)


def test_a_text_of_an_earlier_build_is_no_text_that_was_added() -> None:
    store, folder, said = Store(Path("build"), report=lambda line: None), Path("dist/toy"), list[str]()
    publish(store.build("dist", write_with_text, "old"), folder, say=said.append)
    added = folder / "licences" / "org--added" / "LICENSE"
    added.parent.mkdir()
    added.write_text("put there by hand")
    (added.parent / ".DS_Store").touch()
    shutil.rmtree("build")  # the record is beside what it lists
    publish(store.build("dist", write_with_text, "new"), folder, say=said.append)
    assert sorted(path.parent.name for path in folder.rglob("LICENSE")) == ["org--added", "org--new"]
    assert said == ["kept dist/toy/licences/org--added/LICENSE, which the build did not make"]


def test_an_added_text_outlives_a_kill_between_the_two_renamings() -> None:
    store, folder = Store(Path("build"), report=lambda line: None), Path("dist/toy")
    publish(store.build("dist", write_release, "x"), folder, say=lambda line: None)
    (folder / "licences" / "org--set").mkdir(parents=True)
    (folder / "licences" / "org--set" / "TERMS").write_text("terms")
    folder.rename("dist/.toy.old")
    publish(store.build("dist", write_release, "y"), folder, say=lambda line: None)
    assert (folder / "licences" / "org--set" / "TERMS").read_text() == "terms"
    assert (folder / "model.gguf").read_text() == "y"
    assert sorted(path.name for path in Path("dist").iterdir()) == [".toy.json", "toy"]


def test_a_damaged_deliverable_is_never_published() -> None:
    main(["recipe.py"])
    path = next(Path("build").glob("dist-*/deep/model.gguf"))
    path.unlink()  # the published name of the same file stays
    path.write_text("zz")
    with refuses("damaged", wanted="model.gguf"):
        main(["recipe.py"])
    assert published()["deep/model.gguf"] == "xx"


def test_without_links_files_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError("another file system")

    monkeypatch.setattr("recipes.publish.os.link", refuse)
    main(["recipe.py"])
    assert published() == {"report.html": "x", "deep/model.gguf": "xx"}
    main(["recipe.py"])
    assert published() == {"report.html": "x", "deep/model.gguf": "xx"}


def test_list_names_the_recipes_with_a_word_on_each(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--list"])
    lines = capsys.readouterr().out.splitlines()
    assert [re.fullmatch(r"(\w+) +\S.*", line)[1] for line in lines] == list(KNOWN)  # pyright: ignore[reportOptionalSubscript]
    assert {"mini", "tinyswallow"} <= set(KNOWN)


@pytest.mark.parametrize("argument", ["--list", "--help", "nope", "nope.py"])
def test_what_needs_no_recipe_loads_no_torch(argument: str) -> None:
    code = (
        "import sys; from common.errors import UserError; from recipes.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "except (UserError, SystemExit): pass\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, argument], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_show_prints_every_number(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--show", "recipe.py"])
    assert capsys.readouterr().out.splitlines() == [
        "name: 'toy'",
        "text: 'x'",
        "deep: Deep",
        "  rate: 0.5",
        "several[0]: Deep",
        "  rate: 1.0",
        "several[1]: Deep",
        "  rate: 2.0",
        "file: a/b.txt",
    ]
    assert next(shown(Recipe())) == "name: 'toy'"


def test_auto_says_why_first(monkeypatch: pytest.MonkeyPatch) -> None:
    mini = ModuleType("recipes.mini")
    mini.__dict__["mini"] = Recipe
    monkeypatch.setitem(sys.modules, "recipes.mini", mini)
    monkeypatch.setattr("recipes.plan.machine.gpus_bytes", lambda: ())
    monkeypatch.setattr("recipes.loading.load", lambda name, **others: tinyswallow())
    said: list[str] = []
    assert load("auto", say=said.append) == Recipe()
    assert len(said) == 1 and "mini" in said[0]


def test_sources_are_named_by_option_or_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCES", "elsewhere")
    main(["recipe.py", "--sources", "here", "--until", "corpus"])
    assert os.environ["SOURCES"] == "here"


def _finished(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    state = BuildState(finished=frozenset(names))
    monkeypatch.setattr("recipes.plan.machine.build_state", lambda recipe, folder, sources: state)


def test_a_plan_builds_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    planned: list[tuple[Any, dict[str, Any]]] = []
    stages = [SimpleNamespace(stage=name) for name in ("corpus", "base", "dist")]
    whole, left = (SimpleNamespace(downloads=downloads, stages=stages) for downloads in (("a set",), ()))
    judged: list[Any] = []

    def plan_of(recipe: Any, **where: Any) -> SimpleNamespace:
        planned.append((recipe, where))
        return left if where.get("done") else whole

    monkeypatch.setattr("recipes.plan.plan_of", plan_of)
    monkeypatch.setattr("recipes.plan.lines.plan_lines", lambda plan: ["FLOPs"])
    lacks: list[Unresolved] = []
    _finished(monkeypatch, "corpus")
    monkeypatch.setattr("recipes.preflight.missing", lambda plan, here, **where: judged.append(plan) or lacks)
    main(["recipe.py", "--plan", "--build", "there"])
    said = capsys.readouterr().out
    assert said.startswith("FLOPs\n") and "there: corpus\n" in said and judged == [left]
    assert "missing" not in said and "hub was not asked" not in said
    lacks.append(
        Unresolved(
            what="disk", error=UserError("contradiction", wanted="9 GB", got="1 GB", next_step="free some space")
        )
    )
    main(["recipe.py", "--plan", "--build", "there", "--until", "base"])  # ends with 0: it may be for another machine
    printed = capsys.readouterr().out
    assert f"missing: {lacks[0].error}\n" in printed
    assert [where["until"] for _, where in planned] == [None, None, "base", "base"]
    assert all(recipe == Recipe() and where["build_folder"] == Path("there") for recipe, where in planned)
    assert sorted(path.name for path in Path().iterdir()) == ["recipe.py"]


def test_auto_plans_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr("recipes.__main__.load", lambda name, **others: loaded.append(name))
    monkeypatch.setattr("recipes.plan.plan_of", lambda recipe, **where: SimpleNamespace(downloads=(), stages=()))
    monkeypatch.setattr("recipes.plan.lines.plan_lines", lambda plan: [])
    _finished(monkeypatch)
    monkeypatch.setattr("recipes.preflight.missing", lambda *arguments, **where: [])
    main(["auto", "--plan"])
    assert loaded == ["tinyswallow"]


@pytest.mark.parametrize("name", ["tiny", "nope", ""])
def test_an_unknown_recipe_names_the_known_ones(name: str) -> None:
    with refuses("unknown-name", wanted=", ".join(KNOWN), got=repr(name)):
        load(name, say=print)


BAD_FILES = {
    "syntax": ("def recipe(:", ("invalid syntax", "line 1")),
    "import": ("\nimport no_such_module", ("ModuleNotFoundError", "'no_such_module'", "line 2")),
    "crash": ("def recipe():\n  return 1 / 0", ("ZeroDivisionError: division by zero", "line 2")),
    "field": ("from recipes.recipe import Recipe\ndef recipe():\n  return Recipe(txt='x')", ("TypeError", "line 3")),
    "nothing": ("x = 1", ("no such function",)),
    "result": ("def recipe():\n  return {}", ("returns dict",)),
}
OWN_ERROR = (
    "from common.errors import UserError\ndef recipe(): raise UserError('empty', wanted='k', got='9', next_step='l')"
)


@pytest.mark.parametrize("kind", BAD_FILES)
def test_what_is_wrong_in_a_recipe_file_is_named(kind: str) -> None:
    content, got = BAD_FILES[kind]
    Path("recipe.py").write_text(content)
    with refuses("wrong-format", wanted="recipe.py") as caught:
        load("recipe.py", say=print)
    assert all(part in caught[0].got for part in got) and "\n" not in str(caught[0])


def test_a_recipe_file_s_own_error_is_passed_on() -> None:
    Path("recipe.py").write_text(OWN_ERROR)
    with refuses("empty", wanted="k", got="9"):
        load("recipe.py", say=print)


def test_a_recipe_file_that_is_not_there() -> None:
    with refuses("not-found", wanted="other.py"):
        load("other.py", say=print)


def test_a_stage_of_one_s_own_counts_by_its_file_s_content(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_recipe("x", name=f"{folder}/recipe.py")
    load("one/recipe.py", say=print)
    before = {name for name in sys.modules if name.startswith("recipe_file_")}
    load("two/recipe.py", say=print)
    assert {name for name in sys.modules if name.startswith("recipe_file_")} == before
    write_recipe("a longer text", name="two/recipe.py")
    load("two/recipe.py", say=print)
    assert len({name for name in sys.modules if name.startswith("recipe_file_")}) == len(before) + 1


def test_nothing_asked_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2 and "--list" in capsys.readouterr().err


def test_same_output_needs_a_reason() -> None:
    with refuses("empty", wanted="--reason"):
        main(["--fingerprints", "all", "--same-output"])
