"""One's own files in the place of the embedded world, read back row by row."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from common.device import Machine
from common.errors import UserError
from common.store import Workspace, artifact_key
from recipes.own_files import OwnFilesConfig, own_files

MACHINE = Machine(
    device="cpu", compute_dtype="float32", cpu="any", gpu=None, memory_bytes=1, os="any", threads=1
)  # fmt: skip


def lines(name: str, count: int) -> bytes:
    return "\n".join(json.dumps({"text": f"{name} 文 {index}"}, ensure_ascii=False) for index in range(count)).encode()


def run(config: OwnFilesConfig, folder: Path) -> dict[str, list[Any]]:
    """File name in the world folder to the rows in it."""
    folder.mkdir()
    facts = own_files(config, Workspace(folder=folder, machine=MACHINE))
    assert facts == {"bytes": {path.name: path.stat().st_size for path in folder.iterdir()}}
    found: dict[str, list[Any]] = {}
    for path in folder.iterdir():
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        found[path.name] = [json.loads(line) for line in data.splitlines()]
    return found


def rows(name: str, count: int) -> list[Any]:
    return [json.loads(line) for line in lines(name, count).splitlines()]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_single_files_are_copied_as_they_are(tmp_path: Path, suffix: str) -> None:
    paths = {name: tmp_path / f"my-{name}{suffix}" for name in ("text", "conversations", "questions")}
    for name, path in paths.items():
        path.write_bytes(gzip.compress(lines(name, 3)) if suffix.endswith("gz") else lines(name, 3))
    config = OwnFilesConfig(
        text=(paths["text"],), conversations=(paths["conversations"],), questions=paths["questions"]
    )
    assert run(config, tmp_path / "world") == {f"{name}{suffix}": rows(name, 3) for name in paths}
    for name, path in paths.items():
        copy = tmp_path / "world" / f"{name}{suffix}"
        assert copy.read_bytes() == path.read_bytes() and not copy.samefile(path)


def test_several_files_become_one_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines("a", 2))  # without a line end at its end
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines("b", 2) + b"\n"))
    (tmp_path / "c.jsonl").write_bytes(lines("c", 1))
    config = OwnFilesConfig(text=tuple(tmp_path / name for name in ("b.jsonl.gz", "a.jsonl", "c.jsonl")))
    assert run(config, tmp_path / "world") == {"text.jsonl": rows("b", 2) + rows("a", 2) + rows("c", 1)}


def test_a_truncated_file_among_several_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines("a", 2))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines("b", 2000))[:-20])
    with pytest.raises(UserError, match=r"whole gzip file .*b\.jsonl\.gz"):
        run(OwnFilesConfig(text=(tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz")), tmp_path / "world")


def test_files_count_by_content(tmp_path: Path) -> None:
    for name, content in {"a.jsonl": "x", "b.jsonl": "x", "c.jsonl": "y"}.items():
        (tmp_path / name).write_text(content)
    keys = [
        artifact_key("world", "m:f", 1, OwnFilesConfig(text=(tmp_path / name,)), ())
        for name in ("a.jsonl", "b.jsonl", "c.jsonl")
    ]
    assert keys[0] == keys[1] != keys[2]


def test_bad_paths_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match="at least one text file"):
        OwnFilesConfig(text=())
    with pytest.raises(UserError, match=r"\.jsonl or \.jsonl\.gz; got .*a\.txt"):
        OwnFilesConfig(text=(tmp_path / "a.txt",))
    with pytest.raises(UserError, match=r"absent\.jsonl; got no such file"):
        OwnFilesConfig(text=(tmp_path / "absent.jsonl",))
