"""The whole road on a shrunken recipe: what it leaves, what it rebuilds, what a SIGKILL in every stage changes."""

import getpass
import inspect
import json
import multiprocessing
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from errors_tiny import refuses
from recipe_tiny import recipe

from common.store import Store, Workspace, stage
from distill.initial import InitConfig
from recipes.__main__ import main
from recipes.loading import KNOWN, load
from recipes.plan import plan_of
from recipes.plan.lines import plan_lines
from recipes.recipe import STAGES, Recipe, Stage, build, pipeline, stages_until

ROOT = Path(__file__).parents[1]
SECRET = "hf_planted0secret0that0no0file0may0hold"


@dataclass(frozen=True)
class Whole:
    """A finished build."""

    folder: Path
    output: str

    @property
    def build(self) -> Path:
        return self.folder / "build"

    @property
    def dist(self) -> Path:
        return self.folder / "dist" / "tiny"


def _arguments(folder: Path, *more: str, file: Path = ROOT / "tests" / "recipe_tiny.py") -> list[str]:
    return [str(file), "--build", str(folder / "build"), "--dist", str(folder / "dist"), *more]


def _finish(folder: Path, *more: str, file: Path = ROOT / "tests" / "recipe_tiny.py") -> str:
    finished = subprocess.run(
        [sys.executable, "-m", "recipes", *_arguments(folder, *more, file=file)],
        cwd=ROOT,
        env={**os.environ, "HF_TOKEN": SECRET, "WANDB_API_KEY": SECRET, "HF_HUB_OFFLINE": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stdout
    return finished.stdout


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    return Whole(folder=folder, output=_finish(folder))


ARTIFACTS = tuple(stage.name for stage in pipeline(recipe()))


def _artifact(build_folder: Path, name: str) -> Path:
    (found,) = (path.parent for path in build_folder.glob(f"{name}-????????/manifest.json"))
    return found


@pytest.mark.parametrize("name", KNOWN)
def test_every_stage_is_given_the_artifacts_that_its_parameters_name(name: str) -> None:
    """Inputs are passed by position: a parameter that is called like an artifact must get that artifact."""
    listed = load(name, say=print)
    for each in pipeline(listed):
        parameters = list(inspect.signature(STAGES[type(each.config)]).parameters.values())[2:]
        named = [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
        for parameter, given in zip(named, each.inputs, strict=False):
            assert parameter not in ARTIFACTS or given in (parameter, None), f"{each.name}: {parameter} gets {given}"


@pytest.mark.slow
def test_one_command_leaves_the_deliverables_and_a_report(whole: Whole) -> None:
    for name in ARTIFACTS:
        assert _artifact(whole.build, name).is_dir()
        assert f"\n{name} " in f"\n{whole.output}"
    names = {path.name for path in whole.dist.iterdir()}
    stem = recipe().gguf.stem
    assert {f"{stem}-{encoding}.gguf" for encoding in ("F16", "Q8_0", "Q4_K_M")} <= names
    assert {"report.json", "report.html", "report.md", "SHA256SUMS"} <= names
    told = json.loads((whole.dist / "report.json").read_text(encoding="utf-8"))
    sections = ("recipe", "machine", "artifacts", "training", "fidelity", "tasks", "phones", "speed")
    assert set(sections) <= set(told)
    by_name = {row["path"]: row for row in told["artifacts"] if str(row["path"]).endswith(".gguf")}
    for path in whole.dist.glob("*.gguf"):
        assert by_name[path.name]["sha256"] == sha256(path.read_bytes()).hexdigest()
    fidelity = {row["artifact"]: row for row in told["fidelity"]}
    assert fidelity[f"{stem}-F16.gguf"]["kl"] < 1e-4
    assert fidelity[f"{stem}-F16.gguf"]["top1_agreement"] >= 0.995


@pytest.mark.slow
def test_no_secret_no_host_and_no_path_is_left_behind(whole: Whole) -> None:
    # Names of four letters and fewer turn up in any binary file by chance.
    names = [name for name in (platform.node(), getpass.getuser()) if len(name) > 4]
    forbidden = [SECRET, str(whole.folder), str(ROOT), *names]
    files = [path for root in (whole.build, whole.dist) for path in root.rglob("*") if path.is_file()]
    assert len(files) > 50
    for path in files:
        content = path.read_bytes()
        for text in forbidden:
            assert text.encode() not in content, f"{text} stands in {path}"


@pytest.mark.slow
def test_a_second_run_finds_every_stage_done(whole: Whole) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.build.glob("*/manifest.json")}
    output = _finish(whole.folder)
    assert output.count("done before") == len(ARTIFACTS)
    assert {path: path.stat().st_mtime_ns for path in whole.build.glob("*/manifest.json")} == before


@pytest.mark.slow
def test_one_changed_number_rebuilds_its_stage_and_what_depends_on_it(whole: Whole, tmp_path: Path) -> None:
    changed = tmp_path / "changed.py"
    changed.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from dataclasses import replace\n"
        "import recipe_tiny\n"
        "def recipe():\n"
        "    tiny = recipe_tiny.recipe()\n"
        "    return replace(tiny, chat=replace(tiny.chat, steps=7))\n"
    )
    output = _finish(whole.folder, "--until", "gguf", file=changed)
    again = {line.split()[0] for line in output.splitlines() if "done before" in line}
    assert again == set(ARTIFACTS[: ARTIFACTS.index("chat")])
    assert len(list(whole.build.glob("chat-????????"))) == len(list(whole.build.glob("gguf-????????"))) == 2
    assert len(list(whole.build.glob("coreml-????????"))) == 1, "--until stopped before it"
    for name in ("chat", "gguf"):
        newest = max(whole.build.glob(f"{name}-????????"), key=lambda path: (path / "manifest.json").stat().st_mtime_ns)
        for path in sorted(newest.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        newest.rmdir()


FORKS = multiprocessing.get_context("forkserver")
"""A process that is killed starts as a copy of one that has loaded torch already: a dozen starts in half the time."""
FORKS.set_forkserver_preload(["transformers", "recipes.preflight", "recipes.publish", "recipes.recipe"])


def _build(folder: Path) -> None:
    """`python -m recipes` on the shrunken recipe, in a session of its own and silent."""
    os.setsid()
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)
    main(_arguments(folder))


def _kill_in(folder: Path, name: str) -> None:
    """Start the pipeline and kill it, children included, shortly after stage `name` has begun to write."""
    process = FORKS.Process(target=_build, args=(folder,))
    process.start()
    assert process.pid is not None
    while process.is_alive():
        if list((folder / "build").glob(f"{name}-*.partial")):
            # Training stages are caught between two checkpoints, short ones wherever they are.
            time.sleep(0.3 if name in ("teacher", "student_before", "base", "chat", "evaluation") else 0.02)
            break
        time.sleep(0.005)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), f"before {name} it ended with {process.exitcode}"


@pytest.mark.slow
def test_killed_in_the_middle_of_every_stage_it_ends_with_the_same_files(whole: Whole, tmp_path: Path) -> None:
    for name in ARTIFACTS:
        _kill_in(tmp_path, name)
    _finish(tmp_path)
    for name in ("teacher", "student_before", "base", "chat", "gguf", "corpus", "conversations"):
        files = sorted(
            path.relative_to(_artifact(whole.build, name))
            for path in _artifact(whole.build, name).rglob("*")
            if path.is_file() and path.name not in ("manifest.json", "metrics.jsonl")
        )
        assert files
        for file in files:
            ours, theirs = (_artifact(root, name) / file for root in (tmp_path / "build", whole.build))
            assert ours.read_bytes() == theirs.read_bytes(), f"{name}/{file}"
    assert not list((tmp_path / "build").glob("*.partial")), "nothing half-written is left"


def test_a_recipe_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    tiny: Any = recipe()
    bare = InitConfig(config_json='{"model_type": "qwen2"}')
    too_small = {"corpus": replace(tiny.corpus, sequence_tokens=1024)}, {"teacher": replace(tiny.teacher, init=bare)}
    for change in (*too_small, {"coreml": replace(tiny.coreml, context_tokens=4096)}):
        with refuses("out-of-range", wanted="max_position_embeddings"):
            replace(tiny, **change)
    with refuses("out-of-range", wanted="vocab_size of at least 600"):
        replace(tiny, tokenizer=replace(tiny.tokenizer, vocabulary=600))
    for change, got in (
        ({"teacher": replace(tiny.teacher, init=None)}, "None"),
        ({"name": "../tiny"}, "'../tiny'"),
        ({"name": "other"}, "report.recipe 'tiny'"),
        ({"base": replace(tiny.base, method="cross_entropy")}, "cross_entropy"),
        ({"teacher": replace(tiny.teacher, method="taid")}, "taid"),
        ({"base": replace(tiny.base, init=tiny.teacher.init)}, "one"),
    ):
        with refuses("contradiction", got=got):
            replace(tiny, **change)
    with refuses("unknown-name", wanted="tiny", got="everything"):
        build(tiny, Store(tmp_path), until="everything")


@dataclass(frozen=True, kw_only=True, slots=True)
class PoemConfig:
    """A stage of a recipe's own."""

    lines: int = 2


@stage(version=1)
def poem(config: PoemConfig, workspace: Workspace, world: Path) -> dict[str, Any]:
    text = (world / "text.jsonl").read_text(encoding="utf-8").splitlines()[: config.lines]
    (workspace.folder / "poem.txt").write_text("\n".join(text), encoding="utf-8")
    return {"lines": len(text)}


@pytest.fixture
def with_poem(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """The shrunken recipe with one line more in its list, and one more in the table."""
    monkeypatch.setitem(STAGES, PoemConfig, poem)
    return replace(recipe(), extra=(Stage("poem", PoemConfig(), "world"),))


def test_a_stage_of_ones_own_is_in_build_until_and_plan(with_poem: Recipe, tmp_path: Path) -> None:
    names = [each.name for each in pipeline(with_poem)]
    assert names == [*ARTIFACTS[: ARTIFACTS.index("evaluation")], "poem", *ARTIFACTS[ARTIFACTS.index("evaluation") :]]
    assert [each.name for each in stages_until(with_poem, "poem")] == names[: names.index("poem") + 1]
    plan = plan_of(with_poem, build_folder=tmp_path, sources=None)
    assert "poem" in [each.stage for each in plan.stages] and any("poem" in line for line in plan_lines(plan))
    assert "poem" in next(each for each in pipeline(with_poem) if each.name == "report").inputs


@pytest.mark.slow
def test_a_stage_of_ones_own_is_built_and_in_the_report(with_poem: Recipe, whole: Whole, tmp_path: Path) -> None:
    build_folder = tmp_path / "build"
    shutil.copytree(whole.build, build_folder)
    made = build(with_poem, Store(build_folder, report=lambda line: None))
    assert len((made["poem"].folder / "poem.txt").read_text(encoding="utf-8").splitlines()) == 2
    rows = json.loads((made["report"].folder / "report.json").read_text(encoding="utf-8"))["built_from"]
    (row,) = [row for row in rows if row["stage"] == "poem"]
    assert row["key"] == made["poem"].key and row["seconds"] >= 0
    assert "poem" in (made["report"].folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("extra", "code", "got"),
    [
        ((Stage("poem", PoemConfig(), "wrld"),), "unknown-name", "wrld"),
        ((Stage("poem", PoemConfig(), "dist"),), "contradiction", "a cycle: poem reads dist reads report reads poem"),
        ((Stage("a", PoemConfig(), "b"), Stage("b", PoemConfig(), "world")), "contradiction", "b, which comes later"),
        ((Stage("poem", PoemConfig(), "report"),), "contradiction", "a cycle: poem reads report reads poem"),
        ((Stage("poem", PoemConfig(), "poem"),), "contradiction", "a cycle: poem reads poem"),
        ((Stage("corpus", PoemConfig(), "world"),), "contradiction", "two named corpus"),
        ((Stage("a", PoemConfig(), "b"), Stage("b", PoemConfig(), "a")), "contradiction", "a cycle: a reads b reads a"),
        ((Stage("poem", recipe, "world"),), "unknown-name", "function"),
        ((Stage("poem", PoemConfig(), text="nothing/file"),), "unknown-name", "nothing"),
    ],
)
def test_a_list_of_stages_that_is_no_order_is_refused(
    monkeypatch: pytest.MonkeyPatch, extra: tuple[Stage, ...], code: Any, got: str
) -> None:
    monkeypatch.setitem(STAGES, PoemConfig, poem)
    with refuses(code, got=got):
        replace(recipe(), extra=extra)


def test_the_order_of_the_stages_is_in_one_place() -> None:
    """No other file of the product lists more than a few artifacts in a row."""
    names = "|".join(ARTIFACTS)
    run = re.compile(rf"""(?:["'`]?(?:{names})["'`]?[\s,>-]+(?:->)?\s*){{7,}}""")
    listing = [
        path.relative_to(ROOT).as_posix()
        for package in ("recipes", "eval", "export", "studies", "common", "distill", "instruct", "bench")
        for path in (ROOT / package).rglob("*.py")
        if run.search(path.read_text(encoding="utf-8"))
    ]
    assert listing == []
