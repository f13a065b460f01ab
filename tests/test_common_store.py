"""The store: reuse, rebuild of exactly what depends on a change, whole artifacts or none, and clear errors."""

import errno
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from errors_tiny import refuses

from common.device import Machine
from common.errors import Code, InputError, UserError
from common.store import Artifact, Store, Workspace, read_manifest, run_alone, stage
from common.store.keys import FORMAT

MACHINE = Machine(
    device="cpu", compute_dtype="float32", cpu="any", gpu=None, memory_bytes=1, os="any", threads=1
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyConfig:
    text: str = "x"
    fail: bool = False


runs: list[str] = []
"""Names of the folders of the stages that really ran."""


@stage(version=1)
def toy(config: ToyConfig, workspace: Workspace, *inputs: Path | None) -> dict[str, Any]:
    runs.append(workspace.folder.name.split("-")[0])
    read = [None if folder is None else (folder / "deep" / "out.txt").read_text() for folder in inputs]
    (workspace.folder / "deep").mkdir(exist_ok=True)
    (workspace.folder / "deep" / "out.txt").write_text(f"{config.text}{read}")
    (workspace.folder / "scratch" / "step_000001").write_text("checkpoint")
    if config.fail:
        raise RuntimeError("the stage's own defect")
    return {"tokens_per_s": 1234.5, "pair": (1, 2)}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    runs.clear()
    # Neither the probe nor torch: what is tested here is files.
    monkeypatch.setattr("common.store.building.probe", lambda record: MACHINE)


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, lines: list[str]) -> Store:
    return Store(tmp_path / "build", report=lines.append)


def pipeline(store: Store, **changes: ToyConfig) -> dict[str, Artifact]:
    """a -> b -> d, a -> c -> d, and e by itself."""
    made: dict[str, Artifact] = {}
    for name, inputs in {"a": "", "b": "a", "c": "a", "d": "bc", "e": ""}.items():
        made[name] = store.build(name, toy, changes.get(name, ToyConfig()), *(made[other] for other in inputs))
    return made


def test_manifest_lists_everything_that_the_contract_names(store: Store) -> None:
    made = pipeline(store)
    manifest = read_manifest(made["d"].folder)
    text = (made["d"].folder / "deep" / "out.txt").read_bytes()
    assert manifest == made["d"].manifest
    assert manifest["format"] == FORMAT
    assert manifest["files"] == {"deep/out.txt": {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}}
    assert manifest["key"].startswith(made["d"].folder.name.removeprefix("d-"))
    assert manifest["inputs"] == [made["b"].key, made["c"].key]
    assert manifest["function"] == f"{__name__}:toy" and manifest["version"] == 1
    assert manifest["config"] == {"class": "ToyConfig", "text": "x", "fail": False}
    assert manifest["facts"] == {"tokens_per_s": 1234.5, "pair": [1, 2]}
    assert manifest["machine"] == MACHINE.to_json()
    assert 0 <= manifest["seconds"] < 60 and manifest["peak_bytes"] > 2**20 and manifest["resumed"] is False


def test_build_folder_holds_artifacts_and_nothing_else(store: Store) -> None:
    made = pipeline(store)
    assert sorted(path.name for path in store.root.iterdir()) == sorted(item.folder.name for item in made.values())
    assert sorted(path.name for path in made["a"].folder.iterdir()) == ["deep", "manifest.json"]


def test_one_line_a_stage(store: Store, lines: list[str]) -> None:
    pipeline(store)
    assert [line.split()[0] for line in lines] == list("abcde")
    assert all("1,234 tok/s" in line and "peak" in line and " s " in line for line in lines)
    pipeline(store)
    assert [line.split(maxsplit=1)[1] for line in lines[5:]] == ["done before"] * 5


def test_second_build_runs_nothing(store: Store) -> None:
    first = pipeline(store)
    runs.clear()
    again = pipeline(Store(store.root, report=lambda line: None))
    assert runs == []
    assert {name: artifact.key for name, artifact in first.items()} == {n: a.key for n, a in again.items()}


@pytest.mark.parametrize(
    ("changed", "rebuilt"), [("a", "abcd"), ("b", "bd"), ("c", "cd"), ("d", "d"), ("e", "e")], ids=list("abcde")
)
def test_a_changed_number_rebuilds_its_stage_and_what_depends_on_it(store: Store, changed: str, rebuilt: str) -> None:
    pipeline(store)
    runs.clear()
    pipeline(store, **{changed: ToyConfig(text="y")})
    assert runs == list(rebuilt)
    runs.clear()
    pipeline(store)  # the old artifacts are still there
    assert runs == []


def test_a_new_version_rebuilds(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline(store)
    runs.clear()
    monkeypatch.setitem(toy.__dict__, "version", 2)
    pipeline(store)
    assert runs == list("abcde")


def test_build_folder_may_move(store: Store, tmp_path: Path) -> None:
    pipeline(store)
    runs.clear()
    store.root.rename(tmp_path / "moved")
    pipeline(Store(tmp_path / "moved", report=lambda line: None))
    assert runs == []


def test_none_is_an_omitted_input(store: Store) -> None:
    a = store.build("a", toy, ToyConfig())
    b = store.build("b", toy, ToyConfig(), a, None)
    assert b.manifest["inputs"] == [a.key, None]
    assert b.key != store.build("b", toy, ToyConfig(), a).key


def test_a_failed_stage_leaves_its_work_and_the_next_start_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    @stage(version=1)
    def twice(config: ToyConfig, workspace: Workspace) -> dict[str, Any]:
        checkpoint = workspace.folder / "scratch" / "step_000001"
        seen.append(checkpoint.exists())
        checkpoint.write_text("1")
        if len(seen) == 1:
            raise RuntimeError("the stage's own defect")
        return {}

    with pytest.raises(RuntimeError, match="own defect"):
        store.build("a", twice, ToyConfig())
    assert [path.suffix for path in store.root.iterdir()] == [".partial"]
    made = store.build("a", twice, ToyConfig())
    assert seen == [False, True]
    assert made.manifest["resumed"] is True
    assert list(store.root.iterdir()) == [made.folder]


@pytest.mark.parametrize(
    ("kind", "writes", "stays"),
    [(UserError, True, True), (UserError, False, False), (InputError, True, False), (InputError, False, False)],
)
@pytest.mark.parametrize("alone", [False, True])
def test_a_refused_run_leaves_only_what_a_later_start_can_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[UserError], writes: bool, stays: bool, alone: bool
) -> None:
    def record(path: Path) -> Machine:
        path.write_text("{}")
        return MACHINE

    @stage(version=1)
    def refusing(config: ToyConfig, workspace: Workspace) -> dict[str, Any]:
        (workspace.folder / "scratch" / "shards").mkdir()
        if writes:
            (workspace.folder / "scratch" / "shards" / "00000").write_text("cleaned")
        raise kind("contradiction", wanted="a", got="b", next_step="c")

    monkeypatch.setattr("common.store.building.probe", record)
    root = tmp_path / "build"
    root.mkdir()
    with pytest.raises(kind):
        if alone:
            run_alone(refusing, ToyConfig(), root / "a")
        else:
            Store(root).build("a", refusing, ToyConfig())
    left = [path.name for path in root.iterdir() if path.name != "machine.json"]
    assert [name.endswith(".partial") for name in left] == [True] * stays


def test_facts_that_are_no_json_are_a_defect(store: Store) -> None:
    @stage(version=1)
    def bad(config: float, workspace: Workspace) -> dict[str, Any]:
        return {"loss": float("nan")}

    with pytest.raises(ValueError, match="JSON"):
        store.build("a", bad, 1.0)
    assert not any((path / "manifest.json").exists() for path in store.root.iterdir())


def test_a_function_that_is_no_stage_is_a_defect(store: Store) -> None:
    with pytest.raises(AssertionError, match="mark it with @stage"):
        store.build("a", lambda config, workspace: {}, 1)


def test_leftover_partial_of_a_finished_artifact_is_cleaned(store: Store) -> None:
    folder = store.build("a", toy, ToyConfig()).folder
    partial = folder.with_name(folder.name + ".partial")
    (partial / "scratch").mkdir(parents=True)
    store.build("a", toy, ToyConfig())
    assert list(store.root.iterdir()) == [folder]
    assert runs == ["a"]


# ---- damage -----------------------------------------------------------------------------------------------------


def truncate(folder: Path) -> None:
    os.truncate(folder / "deep" / "out.txt", 1)


def remove(folder: Path) -> None:
    (folder / "deep" / "out.txt").unlink()


def no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def half_manifest(folder: Path) -> None:
    os.truncate(folder / "manifest.json", 40)


def poor_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text(json.dumps({"format": FORMAT, "name": "a", "key": "k"}))


def odd_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")


def change_manifest(folder: Path, **fields: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text()) | fields
    left = {name: value for name, value in manifest.items() if value is not None}
    (folder / "manifest.json").write_text(json.dumps(left))


def other_key(folder: Path) -> None:
    change_manifest(folder, key=read_manifest(folder)["key"][:8] + "0" * 56)  # two keys with equal first digits


def older_format(folder: Path) -> None:
    change_manifest(folder, format=None)


DAMAGES: list[tuple[Callable[[Path], None], Code, str, str]] = [
    (truncate, "damaged", "3 bytes in ", "1 bytes"),
    (remove, "damaged", "3 bytes in ", "no such file"),
    (no_manifest, "not-found", "", "manifest.json"),
    (half_manifest, "damaged", "manifest.json", ""),
    (poor_manifest, "damaged", "manifest.json", "function, version"),
    (odd_manifest, "damaged", "manifest.json", "JSON"),
    (other_key, "mismatch", "", "0" * 56),
    (older_format, "unsupported", f"{FORMAT}", ""),
]


@pytest.mark.parametrize(("damage", "code", "wanted", "got"), DAMAGES, ids=[damage.__name__ for damage, *_ in DAMAGES])
def test_damage_is_named_and_nothing_is_built_over_it(
    store: Store, damage: Callable[[Path], None], code: Code, wanted: str, got: str
) -> None:
    folder = store.build("a", toy, ToyConfig()).folder
    damage(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with refuses(code, wanted=wanted, got=got) as caught:
        store.build("a", toy, ToyConfig())
    assert str(folder) in caught[0].wanted
    assert runs == ["a"]
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_an_input_of_the_right_size_and_other_bytes_is_found_before_it_is_read(store: Store) -> None:
    a = store.build("a", toy, ToyConfig())
    path = a.folder / "deep" / "out.txt"
    path.write_bytes(bytes(path.stat().st_size))
    with refuses("damaged", wanted=f"in {path}"):
        store.build("b", toy, ToyConfig(), a)
    assert runs == ["a"]


@pytest.mark.parametrize("found", [None, FORMAT - 1, FORMAT + 1, str(FORMAT)])
def test_an_artifact_of_another_format_is_refused_where_a_verb_reads_it(tmp_path: Path, found: Any) -> None:
    corpus = run_alone(toy, ToyConfig(), tmp_path / "corpus", report=lambda line: None).folder
    change_manifest(corpus, format=found)
    with refuses("unsupported", wanted=f"format {FORMAT} in {corpus}", got="" if found is None else f"{found}"):
        run_alone(toy, ToyConfig(), tmp_path / "out", corpus)
    assert not (tmp_path / "out").exists()
    with refuses("exists", wanted=f"{corpus}"):  # nor is it a result from before
        run_alone(toy, ToyConfig(), corpus)


def test_a_build_folder_of_another_format_is_built_again_beside_what_it_holds(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr("common.store.keys.FORMAT", FORMAT - 1)
        before = pipeline(store)
    for artifact in before.values():
        change_manifest(artifact.folder, format=None)
    runs.clear()
    after = pipeline(store)
    assert runs == list("abcde")
    assert not {artifact.folder for artifact in before.values()} & {artifact.folder for artifact in after.values()}
    assert all(artifact.folder.is_dir() for artifact in before.values())


# ---- a full disk ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_real_full_device_in_a_stage(store: Store) -> None:
    a = store.build("a", toy, ToyConfig())

    @stage(version=1)
    def fills(config: int, workspace: Workspace, before: Path) -> dict[str, Any]:
        (workspace.folder / "scratch" / "step_000001").write_text("checkpoint")
        with Path("/dev/full").open("w") as file:
            file.write("x" * 10)
        return {}

    with refuses("no-space", wanted=f"{store.root}", got="bytes free") as caught:
        store.build("b", fills, 1, a)
    assert "\n" not in str(caught[0])
    assert store.build("a", toy, ToyConfig()).key == a.key and runs == ["a"]
    partials = list(store.root.glob("b-*.partial"))
    assert (partials[0] / "scratch" / "step_000001").read_text() == "checkpoint"
    assert not list(store.root.glob("*.lock"))


@pytest.mark.parametrize("where", ["flush_to_disk", "replace_text", "os.rename"])
def test_a_disk_that_is_full_when_the_store_writes(store: Store, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def full(*arguments: Any, **names: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched, refuses("no-space"):
        patched.setattr(f"common.store.building.{where}", full)
        store.build("a", toy, ToyConfig())
    assert not [path for path in store.root.iterdir() if path.suffix != ".partial"]
    assert read_manifest(store.build("a", toy, ToyConfig()).folder)["name"] == "a"


# ---- one stage by itself ----------------------------------------------------------------------------------------


def test_run_alone_writes_exactly_out_and_reuses_it(tmp_path: Path, lines: list[str]) -> None:
    out = tmp_path / "mine"
    made = run_alone(toy, ToyConfig(), out, report=lines.append)
    assert made.folder == out and made.manifest["name"] == "toy"
    assert list(tmp_path.iterdir()) == [out]
    run_alone(toy, ToyConfig(), out, report=lines.append)
    assert runs == ["mine"] and lines[1].endswith("done before")


def test_run_alone_takes_artifacts_by_key_and_other_folders_by_content(tmp_path: Path) -> None:
    made = run_alone(toy, ToyConfig(), tmp_path / "a", report=lambda line: None)
    for name in ("plain", "copy"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "out.txt").write_text("own text")
    artifacts = [
        run_alone(toy, ToyConfig(), tmp_path / f"b{index}", made.folder, tmp_path / name, report=lambda line: None)
        for index, name in enumerate(("plain", "copy"))
    ]
    assert artifacts[0].key == artifacts[1].key
    assert artifacts[0].manifest["inputs"][0] == made.key
    assert "own text" in (tmp_path / "b1" / "deep" / "out.txt").read_text()


@pytest.mark.parametrize("content", ["other files", "other settings", "a file"])
def test_run_alone_never_overwrites(tmp_path: Path, content: str) -> None:
    out = tmp_path / "mine"
    if content == "other settings":
        run_alone(toy, ToyConfig(text="other"), out, report=lambda line: None)
    elif content == "other files":
        out.mkdir()
        (out / "thesis.txt").write_text("dear")
    else:
        out.write_text("dear")
    with refuses("exists", wanted=f"{out}"):
        run_alone(toy, ToyConfig(), out)


def test_run_alone_takes_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    run_alone(toy, ToyConfig(), tmp_path / "mine", report=lambda line: None)
    assert read_manifest(tmp_path / "mine")["name"] == "toy"


def test_run_alone_takes_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    run_alone(toy, ToyConfig(), Path("."), report=lambda line: None)
    assert read_manifest(tmp_path / "mine")["name"] == "toy"


def test_run_alone_does_not_resume_from_another_setting(tmp_path: Path) -> None:
    config = ToyConfig(text="long", fail=True)
    with pytest.raises(RuntimeError):
        run_alone(toy, config, tmp_path / "mine")
    made = run_alone(toy, replace(config, fail=False), tmp_path / "mine", report=lambda line: None)
    assert made.manifest["resumed"] is False


@pytest.mark.parametrize(("device", "kept"), [("cpu", ["keep"]), ("cuda", [])])
def test_on_a_cpu_freed_memory_is_kept_and_no_stage_s_peak_is_another_s(
    device: str, kept: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    monkeypatch.setattr("common.store.building.probe", lambda record: replace(MACHINE, device=device))
    for name, word in (("retain_freed_memory", "keep"), ("trim_freed_memory", "give back"), ("reset_peak", "reset")):
        monkeypatch.setattr(f"common.store.building.{name}", lambda word=word: called.append(word))
    Store(tmp_path / "build").build("toy", toy, ToyConfig())
    assert called == [*kept, "give back", "reset"]


@pytest.mark.parametrize("alone", [True, False])
def test_what_was_begun_in_one_precision_goes_on_in_it(
    store: Store, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    """The record of a build folder can be measured again in between, or the environment can choose another one."""
    computed: list[str] = []

    @stage(version=1)
    def works(config: ToyConfig, workspace: Workspace) -> dict[str, Any]:
        computed.append(workspace.machine.compute_dtype)
        (workspace.folder / "made").write_text("x")
        if len(computed) == 1:
            raise UserError("failed", wanted="a", got="b", next_step="c")
        return {}

    def build() -> Artifact:
        if alone:
            return run_alone(works, ToyConfig(), tmp_path / "out", report=lines.append)
        return store.build("works", works, ToyConfig())

    with refuses("failed"):
        build()
    monkeypatch.setattr("common.store.building.probe", lambda record: replace(MACHINE, compute_dtype="bfloat16"))
    store.__dict__.pop("machine", None)
    made = build()
    assert computed == ["float32", "float32"] and made.manifest["machine"]["compute_dtype"] == "float32"
    assert any("goes on in float32" in line for line in lines)
