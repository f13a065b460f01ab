"""What a build keeps to: commits of the hub, checksums of SOURCES; models by name; files that were cut short."""

import gzip
import json
from pathlib import Path

import pytest
from errors_tiny import refuses
from hub_stand_in import COMMIT, SECRET, Hub, Repo
from sources_tiny import MODEL, WANTED, local, safetensors

from common.disk import sha256_of
from common.sources import (
    HubDataset,
    HubFiles,
    HubModel,
    SourcesLock,
    fetch,
    kept_file,
    licence_files,
    resolve,
    small_text,
)
from common.sources.download import require_whole, tensor_shapes

OTHER_COMMIT = "89abcdef" * 5


def test_a_model_is_its_config_weights_tokenizer_and_licence(hub: Hub, tmp_path: Path) -> None:
    hub.repos["org/model"] = Repo(files=MODEL)
    found = resolve(HubModel(name="org/model"), sources=None)
    assert found == HubFiles(
        kind="model",
        name="org/model",
        revision=COMMIT,
        files=WANTED,
        bytes=sum(len(MODEL[name]) for name in WANTED),
    )
    here = resolve(HubModel(name="org/model"), sources=local(tmp_path, "org/model", MODEL))
    assert here == tuple(tmp_path / "org/model" / name for name in WANTED)
    assert isinstance(found, HubFiles)
    for name in WANTED:
        fetch(found, name, tmp_path / "fetched" / name)
        assert (tmp_path / "fetched" / name).read_bytes() == MODEL[name]
    assert not list(tmp_path.rglob("*.part"))


def test_an_interrupted_model_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    name = "model-00001-of-00002.safetensors"
    hub.repos["org/model"] = Repo(files=MODEL, cuts={name: [30]})
    found = resolve(HubModel(name="org/model"), sources=None)
    assert isinstance(found, HubFiles)
    fetch(found, name, tmp_path / name)
    assert (tmp_path / name).read_bytes() == MODEL[name]
    assert [headers["Range"] for headers in hub.contents()] == [None, "bytes=30-"]


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "safetensors"])
def test_a_folder_that_is_no_model_names_what_it_lacks(tmp_path: Path, missing: str) -> None:
    files = {name: body for name, body in MODEL.items() if missing not in name}
    with refuses("not-found", got=f"{missing}; there are LICENSE"):
        resolve(HubModel(name="org/model"), sources=local(tmp_path, "org/model", files))


def test_a_gated_model_names_itself_and_what_to_accept(hub: Hub) -> None:
    hub.repos["org/model"] = Repo(files=MODEL, gated=True)
    with refuses("no-access", wanted="the model org/model", next_step="/org/model "):
        resolve(HubModel(name="org/model"), sources=None)


def test_the_commit_of_the_first_start_stays(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["org/model"] = Repo(files=MODEL)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    path = tmp_path / "build" / "sources.lock.json"
    first = SourcesLock(path, sources=None).find(HubModel(name="org/model"))
    asked = len(hub.asked)
    assert SourcesLock(path, sources=None).find(HubModel(name="org/model")) == first
    assert len(hub.asked) == asked, "what is known is not asked again"
    text = path.read_text(encoding="utf-8")
    assert COMMIT in text and SECRET not in text
    # Another revision is another entry: the first stays as it was.
    SourcesLock(path, sources=None).find(HubModel(name="org/model", revision="v1"))
    assert set(json.loads(path.read_text())["sources"]) == {"model org/model", "model org/model@v1"}


def test_a_locked_commit_that_is_gone_is_named(hub: Hub, tmp_path: Path) -> None:
    hub.repos["org/model"] = Repo(files=MODEL)
    path = tmp_path / "sources.lock.json"
    SourcesLock(path, sources=None).find(HubModel(name="org/model"))
    path.write_text(path.read_text().replace(COMMIT, OTHER_COMMIT))
    found = SourcesLock(path, sources=None).find(HubModel(name="org/model"))
    assert isinstance(found, HubFiles) and found.revision == OTHER_COMMIT
    with refuses("not-found", wanted=OTHER_COMMIT, next_step='"model org/model" from sources.lock.json'):
        small_text(HubModel(name="org/model"), "config.json", build_folder=tmp_path)
    hub.repos["org/model"].moved = True
    with refuses("not-found", wanted=OTHER_COMMIT, next_step='"model org/model" from sources.lock.json'):
        fetch(found, "config.json", tmp_path / "config.json")


def test_files_of_sources_are_kept_by_their_checksum(tmp_path: Path) -> None:
    sources, path = local(tmp_path / "sources", "org/model", MODEL), tmp_path / "sources.lock.json"
    model = HubModel(name="org/model")
    found = SourcesLock(path, sources=sources).find(model)
    listed = json.loads(path.read_text())["sources"]["model org/model"]["files"]
    assert {name: entry["sha256"] for name, entry in listed.items()} == {
        name: sha256_of(sources / "org/model" / name) for name in WANTED
    }
    assert str(tmp_path) not in path.read_text(), "a build folder may be moved"
    assert SourcesLock(path, sources=sources).find(model) == found
    # The same bytes at another time are the same file.
    config = sources / "org/model" / "config.json"
    config.write_bytes(config.read_bytes())
    assert SourcesLock(path, sources=sources).find(model) == found


@pytest.mark.parametrize(
    ("file", "content", "got"),
    [
        ("config.json", b'{"model_type": "llama"}', "sha256"),
        ("LICENSE", None, "no such file"),
        ("NOTICE", b"new", "a new file"),
    ],
)
def test_an_altered_source_is_refused_by_name(tmp_path: Path, file: str, content: bytes | None, got: str) -> None:
    sources, path = local(tmp_path / "sources", "org/model", MODEL), tmp_path / "sources.lock.json"
    SourcesLock(path, sources=sources).find(HubModel(name="org/model"))
    before = path.read_bytes()
    target = sources / "org/model" / file
    if content is None:
        target.unlink()
    else:
        target.write_bytes(content)
    with refuses("damaged", wanted=f"{file} of org/model", got=got, next_step=f"{path}"):
        SourcesLock(path, sources=sources).find(HubModel(name="org/model"))
    assert path.read_bytes() == before


def test_a_lock_of_the_hub_is_none_of_sources(hub: Hub, tmp_path: Path) -> None:
    hub.repos["org/model"] = Repo(files=MODEL)
    path, sources = tmp_path / "sources.lock.json", local(tmp_path / "sources", "org/model", MODEL)
    SourcesLock(path, sources=None).find(HubModel(name="org/model"))
    with refuses("contradiction", wanted="org/model from hub", got="SOURCES", next_step="unset SOURCES"):
        SourcesLock(path, sources=sources).find(HubModel(name="org/model"))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"version": 9, "sources": {}}',
        "[]",
        '{"version": 1, "sources": {"model x": 1}}',
        '{"version": 1, "sources": {"model x": {"from": "hub", "files": {"files": []}}}}',
        '{"version": 1, "sources": {"model x": {"from": "hub", "files": {"name": "a/b", "revision": "main", '
        '"files": [], "bytes": 1}}}}',
        '{"version": 1, "sources": {"model x": {"from": "SOURCES", "files": {"a": {}}}}}',
    ],
)
def test_a_broken_lock_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "sources.lock.json"
    path.write_text(text)
    with refuses("damaged", wanted=f"{path}", got='"model x"' if "model x" in text else ""):
        SourcesLock(path, sources=None)


@pytest.mark.parametrize("cut", [0, 4, 20, -1])
def test_a_safetensors_file_that_was_cut_short(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "model.safetensors"
    whole = safetensors(a=(2, 3), b=(5,))
    path.write_bytes(whole)
    require_whole(path)
    assert tensor_shapes(path) == {"a": (2, 3), "b": (5,)}
    path.write_bytes(whole[:cut])
    with refuses("damaged", wanted=f"safetensors file {path}", got=f"{len(whole[:cut])} bytes"):
        require_whole(path)


def test_a_parquet_file_that_was_cut_short(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow.parquet import write_table

    path = tmp_path / "rows.parquet"
    write_table(pyarrow.table({"text": ["a", "b"]}), path)
    require_whole(path)
    path.write_bytes(path.read_bytes()[:-3])
    with refuses("damaged", wanted=f"parquet file {path}"):
        require_whole(path)
    sources = tmp_path / "sources" / "org" / "set"
    sources.mkdir(parents=True)
    path.rename(sources / "train.parquet")
    with refuses("damaged", wanted="parquet file"):
        SourcesLock(tmp_path / "lock.json", sources=tmp_path / "sources").find(HubDataset(name="org/set"))
    assert not (tmp_path / "lock.json").exists()


def test_licence_texts_are_found_on_the_hub_and_in_sources(hub: Hub, tmp_path: Path) -> None:
    files = {"train.jsonl": b"{}", "LICENSE": b"a", "USE_POLICY.md": b"b", "Notice": b"c", "licences/x": b"d"}
    hub.repos["org/set"] = Repo(files=files)
    found = resolve(HubDataset(name="org/set"), sources=None)
    texts = licence_files(HubDataset(name="org/set"), found, sources=None)
    assert isinstance(texts, HubFiles) and texts.files == ("LICENSE", "Notice", "USE_POLICY.md")
    sources = local(tmp_path, "org/set", files)
    here = licence_files(HubDataset(name="org/set"), (), sources=sources)
    assert here == tuple(sources / "org/set" / name for name in texts.files)


def test_licence_texts_are_asked_for_once(hub: Hub, tmp_path: Path) -> None:
    hub.repos["org/set"] = Repo(files={"train.jsonl": b"{}", "LICENSE": b"a"})
    dataset, path = HubDataset(name="org/set"), tmp_path / "sources.lock.json"
    lock = SourcesLock(path, sources=None)
    first = lock.licences(dataset, lock.find(dataset))
    assert isinstance(first, HubFiles) and first.files == ("LICENSE",)
    hub.asked.clear()
    again = SourcesLock(path, sources=None)
    assert again.licences(dataset, again.find(dataset)) == first
    assert hub.asked == []


def test_of_many_files_only_those_that_are_taken_count(hub: Hub, tmp_path: Path) -> None:
    files = {f"train-{number}.jsonl.gz": gzip.compress(b'{"text": "a"}\n' * (number + 1)) for number in range(3)}
    hub.repos["org/set"] = Repo(files=files)
    dataset, path = HubDataset(name="org/set"), tmp_path / "sources.lock.json"
    found = SourcesLock(path, sources=None).find(dataset, max_files=2)
    assert isinstance(found, HubFiles) and found.files == ("train-0.jsonl.gz", "train-1.jsonl.gz")
    assert found.bytes == sum(len(files[name]) for name in found.files)
    assert SourcesLock(path, sources=None).known(dataset, max_files=2) == found
    assert SourcesLock(path, sources=None).known(dataset) is None
    sources = local(tmp_path / "sources", "org/set", files | {"train-2.jsonl.gz": b"damaged"})
    here = SourcesLock(tmp_path / "other.json", sources=sources).find(dataset, max_files=2)
    assert here == tuple(sources / "org/set" / name for name in found.files), "the third one is not even read"
    with refuses("damaged", wanted="train-2.jsonl.gz"):
        SourcesLock(tmp_path / "other.json", sources=sources).find(dataset)


@pytest.mark.parametrize("lost", ["model-00002-of-00002.safetensors", "model.safetensors.index.json", "listed"])
def test_shards_and_index_must_all_be_there(hub: Hub, tmp_path: Path, lost: str) -> None:
    files = {name: body for name, body in MODEL.items() if name != lost}
    if lost == "listed":
        lost = "other.safetensors"
        files["model.safetensors.index.json"] = b'{"weight_map": {"a": "other.safetensors"}}'
    hub.repos["org/model"] = Repo(files=files)
    for sources in (None, local(tmp_path, "org/model", files)):
        with refuses("not-found", wanted="shards", got=lost):
            resolve(HubModel(name="org/model"), sources=sources)
    assert not hub.contents(), "known before a shard is fetched"


def test_a_small_file_is_read_at_the_commit_of_the_build(hub: Hub, tmp_path: Path) -> None:
    hub.repos["org/model"] = Repo(files=MODEL)
    model = HubModel(name="org/model")
    assert small_text(model, "config.json", build_folder=None) == '{"model_type": "qwen2"}'
    found = SourcesLock(tmp_path / "sources.lock.json", sources=None).find(model)
    assert isinstance(found, HubFiles)
    assert small_text(model, "config.json", build_folder=tmp_path) == '{"model_type": "qwen2"}'
    assert [path.name for path in tmp_path.iterdir()] == ["sources.lock.json"], "a plan leaves no trace"
    kept = kept_file(found, "config.json", build_folder=tmp_path)
    hub.asked.clear()
    assert kept_file(found, "config.json", build_folder=tmp_path) == kept
    assert small_text(model, "config.json", build_folder=tmp_path) == kept.read_text()
    assert hub.asked == []


@pytest.mark.parametrize("keep", [0, 5, -1])
def test_a_gzip_file_that_was_cut_short_or_altered(tmp_path: Path, keep: int) -> None:
    path, whole = tmp_path / "rows.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 50)
    path.write_bytes(whole)
    require_whole(path)
    altered = bytes([*whole[:-8], whole[-8] ^ 1, *whole[-7:]])  # the checksum
    for content in (whole[:keep] if keep else b"no gzip", altered):
        path.write_bytes(content)
        with refuses("damaged", wanted=f"gz file {path}", got=f"{len(content)} bytes"):
            require_whole(path)


def _packet(tag: int, *chunks: bytes) -> bytes:
    """An OpenPGP packet in the new form; all chunks but the last one are partial, of a power of two of bytes."""
    partial = b"".join(bytes([224 + len(chunk).bit_length() - 1]) + chunk for chunk in chunks[:-1])
    return bytes([0xC0 | tag]) + partial + bytes([255]) + len(chunks[-1]).to_bytes(4) + chunks[-1]


@pytest.mark.parametrize(
    "whole",
    [
        _packet(3, b"key") + _packet(18, bytes(512), bytes(1024), bytes(70)),
        b"\x8c\x03key" + bytes([0xD2, 192 + 1, 8]) + bytes(256 + 8 + 192),  # one in the old form, one of two octets
    ],
    ids=["partial", "old and short"],
)
def test_an_encrypted_file_that_was_cut_short(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "rows.jsonl.gz.gpg"
    path.write_bytes(whole)
    require_whole(path)
    for content in (whole[:-1], whole[: len(whole) // 2], b"", b"plain text", whole + b"\n"):
        path.write_bytes(content)
        with refuses("damaged", wanted=f"gpg file {path}"):
            require_whole(path)


def test_an_encrypted_file_in_letters(tmp_path: Path) -> None:
    path = tmp_path / "rows.gpg"
    path.write_bytes(b"-----BEGIN PGP MESSAGE-----\n\nabc\n-----END PGP MESSAGE-----\n")
    require_whole(path)
    path.write_bytes(path.read_bytes()[:40])
    with refuses("damaged", wanted=f"gpg file {path}", got="40 bytes"):
        require_whole(path)
