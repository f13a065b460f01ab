"""The stage that takes a published checkpoint: downloaded or linked, whole or refused; and licence texts."""

import errno
from pathlib import Path

import pytest
from errors_tiny import refuses
from hub_stand_in import Hub, Repo
from sources_tiny import MODEL, WANTED, local, safetensors
from text_tiny import workspace

from common import disk
from common.errors import Code
from common.provenance import DataSource, Terms, read_sources, write_sources
from common.sources import HubFiles, HubModel, download, found_files, resolve
from common.store import Store, run_alone
from recipes.stages import published as stage_module
from recipes.stages.published import (
    LicenceTexts,
    LicenceTextsConfig,
    PublishedModelConfig,
    licence_texts,
    published_model,
)

TERMS = Terms(name="org/model", licence="Apache-2.0")
WHOLE = MODEL | {
    "model.safetensors.index.json": b'{"weight_map": {"a": "model-00001-of-00002.safetensors", '
    b'"b": "model-00002-of-00002.safetensors"}}'
}


def config(root: Path, files: dict[str, bytes] = WHOLE) -> PublishedModelConfig:
    found = resolve(HubModel(name="org/model"), sources=local(root, "org/model", files))
    return PublishedModelConfig(files=found, terms=TERMS)


def test_local_files_get_a_second_name_and_tell_where_they_are_from(tmp_path: Path) -> None:
    made = run_alone(published_model, config(tmp_path / "sources"), tmp_path / "out")
    assert set(made.manifest["files"]) == {*WANTED, "data_sources.json"}
    assert made.manifest["facts"]["parameters"] == 2 * 3 + 4
    weights = "model-00001-of-00002.safetensors"
    assert (made.folder / weights).samefile(tmp_path / "sources" / "org/model" / weights), "no second copy of gigabytes"
    (source,) = read_sources(made.folder)
    assert (source.name, source.licence, source.stage, source.revision) == ("org/model", "Apache-2.0", "model", None)


def test_a_local_model_brings_what_it_learnt_from(tmp_path: Path) -> None:
    """Else a report would take a model that was trained on private text for one of the hub."""
    wanted, learnt = config(tmp_path), DataSource(name="notes", stage="corpus", tokens_out=7)
    found = found_files(wanted.files)
    assert not isinstance(found, HubFiles)
    write_sources(found[0].parent, [learnt])
    published_model(wanted, workspace(tmp_path / "out"))
    first, own = read_sources(tmp_path / "out")
    assert first == learnt and (own.stage, own.terms) == ("model", TERMS)


def test_a_download_goes_on_file_by_file(hub: Hub, tmp_path: Path) -> None:
    hub.repos["org/model"] = Repo(files=WHOLE)
    found = resolve(HubModel(name="org/model"), sources=None)
    assert isinstance(found, HubFiles)
    space = workspace(tmp_path / "out")
    hub.repos["org/model"].statuses = [403]
    with refuses("no-access", wanted="the model org/model"):
        published_model(PublishedModelConfig(files=found, terms=TERMS), space)
    (space.folder / "config.json").write_bytes(WHOLE["config.json"])  # as a killed start leaves what it finished
    facts = published_model(PublishedModelConfig(files=found, terms=TERMS), space)
    assert facts["revision"] == found.revision and facts["parameters"] == 10
    assert not any(path.endswith("config.json") for _, path, _ in hub.asked[-6:]), "what is there is not fetched again"


def test_no_room_is_said_before_the_first_byte(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["org/model"] = Repo(files=WHOLE)
    found = resolve(HubModel(name="org/model"), sources=None)
    monkeypatch.setattr(stage_module, "free_bytes", lambda path: 1000)
    asked = len(hub.asked)
    with refuses("no-space", wanted="org/model", got="1,000 bytes"):
        published_model(PublishedModelConfig(files=found, terms=TERMS), workspace(tmp_path / "out"))
    assert len(hub.asked) == asked
    assert disk.free_bytes(tmp_path) > 1000


def test_files_of_another_disk_are_copied_once_and_only_into_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(stage_module.os, "link", refuse)
    wanted, space = config(tmp_path / "sources"), workspace(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(stage_module, "free_bytes", lambda path: 1000)
        with refuses("no-space", wanted="org/model", got="1,000 bytes"):
            published_model(wanted, space)
        assert not list(space.folder.glob("*.safetensors")), "known before the first byte"
    published_model(wanted, space)
    before = {path.name: path.stat().st_mtime_ns for path in space.folder.glob("*.safetensors")}
    (space.folder / "config.json").write_bytes(b"{")  # as a full disk leaves a copy
    published_model(wanted, space)
    assert {path.name: path.stat().st_mtime_ns for path in space.folder.glob("*.safetensors")} == before
    assert (space.folder / "config.json").read_bytes() == WHOLE["config.json"]
    assert not list(space.folder.glob("*.part"))


def test_a_disk_that_fills_up_during_a_download_loses_nothing(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "model-00001-of-00002.safetensors"
    files = WHOLE | {name: safetensors(a=(50_000,))}
    hub.repos["org/model"] = Repo(files=files)
    found = resolve(HubModel(name="org/model"), sources=None)
    stage_config = PublishedModelConfig(files=found, terms=TERMS)
    store = Store(tmp_path / "build", report=lambda line: None)
    with monkeypatch.context() as patch:
        patch.setattr(download, "progress", lambda total, label, unit: _Full(30_000 if label == name else None))
        with refuses("no-space", wanted="student_before-", got="bytes free"):
            store.build("student_before", published_model, stage_config)
    (part,) = (tmp_path / "build").glob(f"*.partial/{name}.part")
    kept = part.stat().st_size
    assert 30_000 <= kept < len(files[name]) and not list((tmp_path / "build").glob("*/manifest.json"))
    hub.asked.clear()
    made = store.build("student_before", published_model, stage_config)
    assert (made.folder / name).read_bytes() == files[name]
    assert f"bytes={kept}-" in [headers.get("Range") for headers in hub.contents()], "taken up where it ended"


class _Full:
    """A bar of a download on a disk that has room for so many bytes more; None for enough."""

    def __init__(self, room: int | None) -> None:
        self._room = room

    def __enter__(self) -> "_Full":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, count: int) -> None:
        if self._room is not None:
            self._room -= count
            if self._room <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("file", "content", "code", "got"),
    [
        ("model-00002-of-00002.safetensors", None, "not-found", "no model-00002-of-00002"),
        ("model.safetensors.index.json", None, "not-found", "no model.safetensors.index.json"),
        ("model-00002-of-00002.safetensors", safetensors(c=(1,)), "damaged", "no tensor b"),
        ("model-00002-of-00002.safetensors", safetensors(b=(4,))[:-1], "damaged", "of its header"),
        ("model.safetensors.index.json", b"{}", "damaged", "KeyError"),
        ("config.json", b"{}", "damaged", "a config.json without model_type"),
        ("tokenizer.json", b"{", "damaged", "tokenizer.json"),
    ],
)
def test_an_incomplete_model_is_refused(tmp_path: Path, file: str, content: bytes | None, code: Code, got: str) -> None:
    files = {name: body for name, body in WHOLE.items() if name != file or content is not None}
    files |= {} if content is None else {file: content}
    with refuses(code, got=got):
        published_model(config(tmp_path / "sources", files), workspace(tmp_path / "out"))


def test_licence_texts_stand_by_publisher(tmp_path: Path) -> None:
    text = tmp_path / "USE_POLICY.md"
    text.write_text("policy")
    model = tmp_path / "model"
    local(tmp_path, "model", {"LICENSE": b"the licence", "config.json": b"{}"})
    config = LicenceTextsConfig(data_sets=(LicenceTexts(name="org/set", files=(text,)),), model_names=("org/model",))
    facts = licence_texts(config, workspace(tmp_path / "out"), model)
    assert facts == {"files": 2}
    assert (tmp_path / "out" / "org--set" / "USE_POLICY.md").read_text() == "policy"
    assert (tmp_path / "out" / "org--model" / "LICENSE").read_text() == "the licence"
    with refuses("contradiction", wanted="1 model folders", got="0"):
        licence_texts(config, workspace(tmp_path / "other"))
