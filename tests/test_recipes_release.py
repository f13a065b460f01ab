"""The release on sources of the published shapes: the recipe itself with other sizes, to the end; and what is refused.

The long run is here in the shortest form that has every part of it; nothing but sizes differs from the release.
"""

import contextlib
import errno
import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from errors_tiny import refuses
from hub_stand_in import COMMIT, Hub, Repo
from hub_stand_in import SECRET as TOKEN
from huggingface_hub import close_session, constants
from lmsys_tiny import ANSWERS, INSTRUCTIONS, ORIGINAL, SECRET, SET, VARIABLE, needs_gpg
from published_sources import GEMMA, MAGPIE, STUDENT, TEACHER, WEB, publish

from common.errors import UserError
from common.sources import LOCK_FILE, HubModel, small_text
from common.store import Artifact, Store
from recipes import inspect
from recipes.japanese_teacher import japanese_teacher
from recipes.mini import mini
from recipes.plan import plan_of
from recipes.qwen3 import qwen3
from recipes.recipe import Recipe, build, pipeline
from recipes.rehearsal import rehearsal
from recipes.resizing import SIZES, resized
from recipes.resolve import resolve
from recipes.stages.benchmarks import BenchmarkFilesConfig
from recipes.tinyswallow import STEM, tinyswallow

pytestmark = needs_gpg

SMALL: dict[str, int | float] = {
    "world.items_per_benchmark": 1,
    "corpus.sequence_tokens": 256,
    "corpus.shares.calibration": 0.02,
    "corpus.shares.validation": 0.02,
    "corpus.shares.test": 0.02,
    "conversations.sequence_tokens": 256,
    "conversations.shares.calibration": 0.02,
    "conversations.shares.validation": 0.02,
    "conversations.shares.test": 0.02,
    "base.steps": 2,
    "base.rows_per_step": 2,
    "base.micro_batch_rows": 1,
    "base.validate_every": 2,
    "base.checkpoint_every": 1,
    "chat.steps": 2,
    "chat.rows_per_step": 2,
    "chat.micro_batch_rows": 1,
    "chat.validate_every": 2,
    "chat.checkpoint_every": 1,
    "coreml.context_tokens": 128,
    "evaluation.items_per_shape": 1,
    "evaluation.items_per_shape_other": 1,
    "evaluation.fidelity_tokens": 32,
    "evaluation.context_tokens": 128,
    "evaluation.sample_max_tokens": 4,
}


def built(recipe: Recipe, store: Store, *, until: str | None = None) -> dict[str, Artifact]:
    """What `python -m recipes` builds."""
    return build(resolve(recipe, store.root, until=until), store, until=until)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("release") / "sources", documents=60, conversations=30)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, sources: Path) -> pytest.MonkeyPatch:
    monkeypatch.setenv("SOURCES", str(sources))
    monkeypatch.setenv(VARIABLE, SECRET)
    return monkeypatch


def _flattened(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a recipe by its dotted name."""
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _flattened(getattr(value, field.name), f"{name}.{field.name}" if name else field.name)
    elif isinstance(value, tuple) and any(map(is_dataclass, value)):
        yield f"{name}.length", len(value)
        for place, item in enumerate(value):
            yield from _flattened(item, f"{name}[{place}]")
    else:
        yield name, value


def test_nothing_but_sizes_differs() -> None:
    whole, small = dict(_flattened(tinyswallow())), dict(_flattened(resized(tinyswallow(), SMALL)))
    assert whole.keys() == small.keys()
    assert {name for name in whole if whole[name] != small[name]} == set(SMALL)
    with pytest.raises(UserError, match=r"the name of a size.*got base\.optim\.learning_rate"):
        resized(tinyswallow(), {"base.optim.learning_rate": 1})
    with pytest.raises(UserError, match=r"the name of a field of the recipe; got base\.none\.steps"):
        resized(tinyswallow(), {"base.none.steps": 1})
    assert resized(tinyswallow(), {"corpus.sources[0].max_files": 1}).corpus.sources[0].max_files == 1
    texts = ("sources[9].max_files", "sources[x].max_files", "sources[-1].max_files", "sources[0]max_files")
    for name in (*(f"corpus.{text}" for text in texts), "base[0].steps"):
        with pytest.raises(UserError, match=f"got {re.escape(name)}"):
            resized(tinyswallow(), {name: 1})
    assert "steps" in SIZES


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspected:
    """What `python -m recipes.inspect` printed, its build folder, and the folders that were in it then."""

    printed: str
    build: Path
    names: tuple[str, ...]


@pytest.fixture(scope="module")
def inspected(tmp_path_factory: pytest.TempPathFactory, sources: Path) -> Inspected:
    """The data of the release, which the whole build below finds built."""
    folder, printed = tmp_path_factory.mktemp("inspected") / "build", io.StringIO()
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(printed):
        for name, value in (("SOURCES", str(sources)), (VARIABLE, SECRET), ("HF_TOKEN", TOKEN)):
            patched.setenv(name, value)
        patched.setattr(inspect, "load", lambda name, **where: resized(tinyswallow(), SMALL))
        inspect.main(["tinyswallow", "--build", str(folder), "--rows", "1"])
    names = tuple(path.name for path in folder.iterdir())
    return Inspected(printed=printed.getvalue(), build=folder, names=names)


def test_what_the_release_reads_can_be_looked_at_before_it_trains(inspected: Inspected) -> None:
    assert re.findall(r"== (\w+), row", inspected.printed) == ["corpus", "conversations"]
    assert "<|im_start|>assistant" in inspected.printed
    assert "missing" not in inspected.printed and "FLOPs" not in inspected.printed
    artifacts = {name.split("-")[0] for name in inspected.names}
    assert "teacher" not in artifacts and "student_before" in artifacts


def test_the_release_from_names_to_files(inspected: Inspected, sources: Path, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HF_TOKEN", TOKEN)
    recipe = resized(tinyswallow(), SMALL)
    done = built(recipe, Store(inspected.build))
    names = [stage.name for stage in pipeline(recipe)]
    assert list(done) == [name for name in names if name != "benchmarks"], "SOURCES has the benchmark files"
    release = done["dist"].folder
    files = {path.name for path in release.iterdir()}
    assert {f"{STEM}-{encoding}.gguf" for encoding in ("Q5_K_M", "Q8_0", "Q4_K_M")} <= files
    assert {"README.md", "LICENSE.md", "LICENSES.md", "DATA.md", "SHA256SUMS", "Modelfile", "report.html"} <= files
    assert done["coreml"].manifest["facts"].get("skipped") or any(name.endswith(".mlpackage") for name in files)
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=release, check=True)

    report = json.loads((release / "report.json").read_text(encoding="utf-8"))
    assert {row["stage"] for row in report["training"]} == {"base", "chat"}, "published models were not trained here"
    asked = {row["task"] for row in report["tasks"] if row["artifact"] == "chat"}
    assert asked == {"jcommonsenseqa", "jmmlu", "jsquad", "jemhopqa", "niilc", "mgsm_ja", "average"}
    names = {source["name"] for source in json.loads((release / "data_sources.json").read_text())["sources"]}
    assert names == {TEACHER, STUDENT, WEB, "wikimedia/wikipedia", SET, f"{MAGPIE}:ja", GEMMA}
    assert (release / "licences" / MAGPIE.replace("/", "--") / "USE_POLICY.md").is_file()
    card = (release / "README.md").read_text(encoding="utf-8")
    assert "zero-shot" in card and "Built with Llama" in card
    for folder in (release, inspected.build):
        for path in folder.rglob("*"):
            if path.suffix in (".md", ".json", ".html", ".jsonl"):
                text = path.read_text(encoding="utf-8", errors="replace")
                assert SECRET not in text and str(sources) not in text, path

    assert not holding(TOKEN, inspected.build)

    lock = json.loads((inspected.build / LOCK_FILE).read_text(encoding="utf-8"))["sources"]
    assert {entry.split()[1].partition(":")[0] for entry in lock} >= {
        TEACHER,
        STUDENT,
        WEB,
        SET,
        ORIGINAL,
        MAGPIE,
        GEMMA,
    }


def holding(secret: str, folder: Path) -> list[Path]:
    """The files under a folder that hold it, whatever their format."""
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def test_whatever_is_missing_is_named_at_once_before_any_work(
    tmp_path: Path, sources: Path, environment: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "sources"
    shutil.copytree(sources, copy, copy_function=lambda one, other: Path(other).hardlink_to(one))
    shutil.rmtree(copy / TEACHER)
    shutil.rmtree(copy / GEMMA)
    shutil.rmtree(copy / "benchmarks")
    environment.setenv("SOURCES", str(copy))
    with pytest.raises(UserError) as raised:
        built(resized(tinyswallow(), SMALL), Store(tmp_path / "build"))
    for name in (TEACHER, GEMMA, "benchmarks"):
        assert name in str(raised.value)
    assert not any((tmp_path / "build").glob("world*")), "nothing was begun"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (f"{TEACHER}/model-00001-of-00004.safetensors", "cut", "a whole safetensors file"),
        (f"{WEB}/data/jpn_Jpan/train/000_00000.parquet", "cut", "a whole parquet file"),
        (f"{STUDENT}/config.json", "alter", f"config.json of {STUDENT} in SOURCES.*got other bytes"),
        (f"{MAGPIE}/train_ja.jsonl", "alter", f"train_ja.jsonl of {MAGPIE} in SOURCES.*got other bytes"),
        (f"{SET}/dataset/{INSTRUCTIONS}.gpg", "alter", "got other bytes"),
        (f"{SET}/dataset/{INSTRUCTIONS}.gpg", "cut", "a whole gpg file"),
        (f"{SET}/dataset/{ANSWERS}", "cut", "a whole gz file"),
    ],
)
def test_a_source_that_was_cut_or_altered_is_refused_by_name(
    tmp_path: Path, sources: Path, environment: pytest.MonkeyPatch, file: str, change: str, message: str
) -> None:
    copy = tmp_path / "sources"
    shutil.copytree(sources, copy, copy_function=lambda one, other: Path(other).hardlink_to(one))
    environment.setenv("SOURCES", str(copy))
    folder = tmp_path / "build"
    resolve(tinyswallow(), folder)
    assert (folder / LOCK_FILE).is_file()
    target = copy / file
    if not target.is_file():
        target = sorted(target.parent.glob("*.safetensors"))[0]
    whole = target.read_bytes()
    target.unlink()
    target.write_bytes(whole[: len(whole) // 2] if change == "cut" else bytes([*whole[:-1], whole[-1] ^ 1]))
    with pytest.raises(UserError, match=message):
        built(resized(tinyswallow(), SMALL), Store(folder))
    assert not list(folder.glob("*-*")), "before any work"
    target.write_bytes(whole)
    resolve(tinyswallow(), folder)


def test_the_set_that_needs_a_passphrase_is_refused_before_the_teacher(
    tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv(VARIABLE, "wrong")
    store = Store(tmp_path / "build")
    with pytest.raises(UserError, match="passphrase"):
        built(resized(tinyswallow(), SMALL), store)
    assert not any((tmp_path / "build").glob("corpus*")), "before hours of cleaning"
    assert any((tmp_path / "build").glob("student_before-*")), "what was finished is kept"


def test_every_recipe_is_consistent_and_says_where_its_numbers_are_from() -> None:
    for recipe in (tinyswallow(), qwen3(), japanese_teacher()):
        assert recipe.dist.card is not None and recipe.report.choices == recipe.dist.card.choices
        chosen = [choice for choice in recipe.report.choices if choice.source is None]
        assert chosen and all(choice.reason for choice in chosen)
    terms = [source.terms for source in qwen3().corpus.sources]
    assert not any("Llama" in str(each) or "Gemma" in str(each) for each in terms)
    assert rehearsal().base is None and mini().base is not None


@pytest.mark.parametrize(
    ("change", "got"),
    [
        ({"corpus": mini().corpus}, "0 of text, 3 of conversations, world of BenchmarkQuestionsConfig"),
        ({"world": mini().world}, "2 of text, 3 of conversations, world of WorldConfig"),
        ({"tokenizer": mini().tokenizer}, "both"),
        ({"base": None}, "base missing"),
        ({"chat": rehearsal().chat}, "teacher, student_before, base, conversations set"),
        ({"benchmarks": None}, "none"),
    ],
)
def test_a_recipe_that_contradicts_itself(change: dict[str, Any], got: str) -> None:
    with refuses("contradiction", got=got):
        replace(tinyswallow(), **change)


def repositories(sources: Path) -> dict[str, Repo]:
    """What the stand-in for the hub holds: everything in the folder, by `org/name`."""
    found: dict[str, Repo] = {}
    for org in sources.iterdir():
        if org.name in ("tokenizer", "benchmarks"):
            continue
        for folder in org.iterdir():
            paths = [path for path in folder.rglob("*") if path.is_file()]
            files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
            found[f"{org.name}/{folder.name}"] = Repo(files=files)
    return found


@pytest.fixture
def hub_of_release(hub: Hub, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The hub with everything that the release wants, and benchmark files from an archive on loopback."""
    hub.repos |= repositories(sources)
    monkeypatch.delenv("SOURCES", raising=False)
    monkeypatch.setenv(VARIABLE, SECRET)
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        archive.add(sources / "benchmarks", arcname="repository-0123")
    (tmp_path / "web" / "org" / "set" / "tar.gz").mkdir(parents=True)
    (tmp_path / "web" / "org" / "set" / "tar.gz" / COMMIT).write_bytes(made.getvalue())
    registry = tmp_path / "registry.toml"
    fields = ['repository = "org/set"', f'commit = "{COMMIT}"', 'licence = "MIT"', 'files = ["**/*.*"]']
    registry.write_text("\n".join(["[all]", *fields]) + "\n")
    config = BenchmarkFilesConfig(registry=registry, address=(tmp_path / "web").as_uri())
    monkeypatch.setattr("recipes.tinyswallow.BenchmarkFilesConfig", lambda: config)
    return hub


def test_the_release_from_the_hub_and_again_without_it(
    tmp_path: Path, hub_of_release: Hub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Broken connections and a gated set, which a token opens that is found nowhere afterwards; then no network."""
    hub = hub_of_release
    hub.repos[ORIGINAL].gated = hub.repos[ORIGINAL].hides_gate = True
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    weights = next(name for name in hub.repos[STUDENT].files if name.endswith(".safetensors"))
    hub.repos[STUDENT].cuts[weights] = [1000, 2000]
    hub.repos[WEB].statuses.append(503)
    recipe, store = resized(tinyswallow(), SMALL | {"corpus.sources[0].max_files": 1}), Store(tmp_path / "build")
    done = built(recipe, store, until="licences")
    assert list(done) == [stage.name for stage in pipeline(recipe)][: len(done)], (
        "licence texts and closed sets before anything is trained"
    )
    assert done["student_before"].manifest["facts"]["revision"] == COMMIT
    card = json.loads((done["corpus"].folder / "data_card.json").read_text(encoding="utf-8"))
    assert {source["revision"] for source in card["sources"]} == {COMMIT}
    assert all(source["rows_out"] for source in card["sources"])
    web = done["corpus"].manifest["config"]["sources"][0]["files"]
    assert web["bytes"] == len(hub.repos[WEB].files[web["files"][0]]), "of the one file that is taken"
    assert any(headers.get("Authorization") == f"Bearer {TOKEN}" for _, path, headers in hub.asked if ORIGINAL in path)
    assert not holding(TOKEN, tmp_path)
    output = capfd.readouterr()
    assert TOKEN not in output.out + output.err and "trying again" in output.err

    hub.asked.clear()
    assert {name: one.key for name, one in built(recipe, store, until="licences").items()} == {
        name: one.key for name, one in done.items()
    }
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    assert list(built(recipe, store, until="licences")) == list(done)
    plan = plan_of(recipe, build_folder=store.root, sources=None)
    assert plan.needs.disk_unknown == (), "the lock knows all sizes"
    for name in (TEACHER, STUDENT):  # as a plan reads it of a model whose shapes are not known by name
        assert json.loads(small_text(HubModel(name=name), "config.json", build_folder=store.root))["vocab_size"] > 0
    assert hub.asked == []


def test_what_the_hub_refuses_is_named_before_anything_is_fetched(tmp_path: Path, hub_of_release: Hub) -> None:
    hub = hub_of_release
    hub.repos[ORIGINAL].gated = hub.repos[ORIGINAL].hides_gate = True
    del hub.repos[TEACHER]
    with pytest.raises(UserError) as raised:
        built(resized(tinyswallow(), SMALL), Store(tmp_path / "build"))
    text = str(raised.value)
    assert f"your own copy of {ORIGINAL}" in text and "its terms are not accepted" in text and "HF_TOKEN" in text
    assert f"the model {TEACHER}" in text and "no such model" in text
    assert not hub.contents() and not list((tmp_path / "build").glob("*-*"))


def test_a_teacher_of_another_tokenizer_is_refused_before_its_weights(tmp_path: Path, hub_of_release: Hub) -> None:
    files = hub_of_release.repos[TEACHER].files
    described = json.loads(files["tokenizer.json"])
    vocabulary = described["model"]["vocab"]
    first, second = list(vocabulary)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    files["tokenizer.json"] = json.dumps(described).encode()
    with pytest.raises(UserError, match=f"a teacher with the tokenizer of {STUDENT}; got {TEACHER}: id "):
        built(resized(tinyswallow(), SMALL), Store(tmp_path / "build"))
    assert not any(path.endswith(".safetensors") for _, path, _ in hub_of_release.asked)


def test_a_full_disk_is_named_and_nothing_finished_is_lost(
    tmp_path: Path, environment: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "build")
    built(resized(tinyswallow(), SMALL), store, until="student_before")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "build").glob("*/manifest.json")}

    def full(*arguments: Any, **named: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("distill.corpus.stage.write_kept", full)
    with pytest.raises(UserError, match=r"room on the disk for .*; got a full disk"):
        built(resized(tinyswallow(), SMALL), store, until="corpus")
    monkeypatch.undo()
    assert {path: path.stat().st_mtime_ns for path in before} == before
