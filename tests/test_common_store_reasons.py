"""Stages that end with a reason where they cannot run: reused only there, and what read the reason is built again."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.device import Machine
from common.errors import UserError
from common.store import Artifact, Store, Workspace, not_here, read_manifest, run_alone, stage

MACHINE = Machine(
    device="cpu", compute_dtype="float32", cpu="any", gpu=None, memory_bytes=1, os="any", threads=1
)  # fmt: skip
reasons: dict[str, str] = {}
"""By config why this machine cannot run the stage `convert`."""
runs: list[str] = []


@stage(version=1, can_run=reasons.get)
def convert(config: str, workspace: Workspace, *inputs: Path) -> dict[str, Any]:
    runs.append("convert")
    reason = reasons.get(config)
    if reason is not None:
        return not_here(reason) | {"platform": "A"}
    (workspace.folder / "package").mkdir(exist_ok=True)
    (workspace.folder / "package" / "weights").write_text(config)
    return {"bytes": 1}


@stage(version=1)
def read(config: str, workspace: Workspace, package: Path) -> dict[str, Any]:
    runs.append("read")
    return {"saw": sorted(path.name for path in package.iterdir())}


@pytest.fixture(autouse=True)
def machine_a(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that cannot run the stage."""
    runs.clear()
    reasons.clear()
    reasons["x"] = "no wheel"
    monkeypatch.setattr("common.store.building.probe", lambda record: MACHINE)


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, lines: list[str]) -> Store:
    return Store(tmp_path / "build", report=lines.append)


def pipeline(store: Store) -> tuple[Artifact, Artifact]:
    package = store.build("package", convert, "x")
    return package, store.build("report", read, "x", package)


def ran() -> list[str]:
    done = runs.copy()
    runs.clear()
    return done


def test_a_reason_is_reused_while_it_is_true(store: Store, lines: list[str]) -> None:
    package, report = pipeline(store)
    assert package.reason == "no wheel" and report.reason is None
    assert package.manifest["facts"] == {"not_here": "no wheel", "platform": "A"}
    assert ran() == ["convert", "read"]
    assert pipeline(store) == (package, report)
    assert ran() == []
    assert [line.split()[0] for line in lines] == ["package", "report"] * 2
    assert all("no wheel" in line for line in lines[::2])


def test_where_the_stage_can_run_it_is_built_again_and_so_is_what_read_the_reason(store: Store) -> None:
    reason, report_of_reason = pipeline(store)
    ran()
    reasons.clear()
    package, report = pipeline(store)
    assert ran() == ["convert", "read"]
    assert package.folder == reason.folder and package.manifest["key"] == reason.manifest["key"]
    assert package.key == package.manifest["key"] != reason.key
    assert (report_of_reason.manifest["inputs"], report.manifest["inputs"]) == ([reason.key], [package.key])
    assert report_of_reason.manifest["facts"]["saw"] == ["manifest.json"]
    assert report.manifest["facts"]["saw"] == ["manifest.json", "package"]
    assert sorted(store.root.iterdir()) == sorted([package.folder, report.folder, report_of_reason.folder])
    # A result also serves a machine that could not make it.
    reasons["x"] = "no wheel"
    assert pipeline(store) == (package, report) and ran() == []


def test_by_itself_a_stage_keeps_the_same_rule(tmp_path: Path) -> None:
    def alone() -> tuple[Artifact, Artifact]:
        package = run_alone(convert, "x", tmp_path / "package", report=lambda line: None)
        number = len(list(tmp_path.glob("report*")))
        report = run_alone(read, "x", tmp_path / f"report{number}", package.folder, report=lambda line: None)
        return package, report

    reason, report_of_reason = alone()
    assert run_alone(convert, "x", tmp_path / "package", report=lambda line: None) == reason
    assert ran() == ["convert", "read"]
    reasons.clear()
    package, report = alone()
    assert ran() == ["convert", "read"]
    assert package.reason is None and package.folder == reason.folder and package.key != reason.key
    assert (report_of_reason.manifest["inputs"], report.manifest["inputs"]) == ([reason.key], [package.key])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["package", "report0", "report1"]


def test_the_test_gets_the_config(store: Store) -> None:
    reasons["y"] = "too little memory"
    made = {config: store.build("package", convert, config) for config in ("x", "y", "z")}
    assert [artifact.reason for artifact in made.values()] == ["no wheel", "too little memory", None]
    ran()
    del reasons["x"]
    assert [store.build("package", convert, config).reason for config in made] == [None, "too little memory", None]
    assert ran() == ["convert"]


def test_a_reason_has_no_files_of_a_start_that_was_killed_elsewhere(store: Store) -> None:
    partial = Path(f"{store.expected('package', convert, 'x').folder}.partial")
    for name in ("package/half", "scratch/step_000001", "log"):
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).touch()
    package = store.build("package", convert, "x")
    assert package.reason and package.manifest["files"] == {}
    assert [path.name for path in package.folder.iterdir()] == ["manifest.json"]


def keep_partial(folder: Path) -> None:
    """Killed between the manifest and the renaming."""
    folder.rename(f"{folder}.partial")
    Path(f"{folder}.partial", "scratch").mkdir()


def keep_both(folder: Path) -> None:
    """An unfinished start next to the finished reason."""
    shutil.copytree(folder, f"{folder}.partial")
    (Path(f"{folder}.partial") / "manifest.json").unlink()
    Path(f"{folder}.partial", "half").touch()


def keep_lock(folder: Path) -> None:
    folder.with_name(folder.name + ".lock").write_text("99999999")


@pytest.mark.parametrize("kill", [keep_partial, keep_both, keep_lock])
@pytest.mark.parametrize("flips", [False, True])
def test_what_a_kill_leaves_changes_nothing(store: Store, kill: Callable[[Path], None], flips: bool) -> None:
    reason = store.build("package", convert, "x")
    kill(reason.folder)
    if flips:
        reasons.clear()
    package = store.build("package", convert, "x")
    assert (package.reason is None) == flips
    assert list(package.manifest["files"]) == (["package/weights"] if flips else [])
    assert list(store.root.iterdir()) == [package.folder]
    assert runs == ["convert"] * (1 + flips)


@pytest.mark.parametrize("call", ["rename", "rmtree"])
def test_a_failure_while_a_reason_is_removed_leaves_no_damage(
    store: Store, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.build("package", convert, "x")
    reasons.clear()

    def fail(*arguments: Any, **names: Any) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr(os if call == "rename" else shutil, call, fail)
        store.build("package", convert, "x")
    package = store.build("package", convert, "x")
    assert package.reason is None and list(store.root.iterdir()) == [package.folder]


def test_expected_is_what_build_gives(store: Store) -> None:
    def expected() -> list[Artifact]:
        package = store.expected("package", convert, "x")
        return [package, store.expected("report", read, "x", package)]

    for reason in ("no wheel", None):
        if reason is None:
            reasons.clear()
        before, made, after = expected(), pipeline(store), expected()
        assert [(one.key, one.folder) for one in before] == [(one.key, one.folder) for one in made]
        assert [one.manifest for one in before] == [{}, {}]
        assert after == list(made)
    assert json.loads((after[0].folder / "manifest.json").read_text()) == read_manifest(after[0].folder)


def test_what_the_test_refuses_is_refused_before_anything_is_removed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = store.build("package", convert, "x").folder

    def refuse(config: str) -> str | None:
        raise UserError("not-installed", wanted="a library", got="none", next_step="install it")

    monkeypatch.setitem(convert.__dict__, "can_run", refuse)
    with pytest.raises(UserError):
        store.build("package", convert, "x")
    assert read_manifest(folder)["facts"]["not_here"] == "no wheel"


def test_a_reason_of_a_stage_without_a_test_is_a_defect(store: Store) -> None:
    @stage(version=1)
    def untested(config: str, workspace: Workspace) -> dict[str, Any]:
        return not_here("no wheel")

    with pytest.raises(AssertionError, match="can_run"):
        store.build("a", untested, "x")
