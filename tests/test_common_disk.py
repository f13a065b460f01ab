"""Checksums, whole-file writes and flushes, against hashlib and plain reads; the lock, by threads: each opens the lock
file for itself, as a process does."""

import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from common import disk


def test_checksum_follows_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for content in (b"", b"one", b"two"):
        path.write_bytes(content)
        os.utime(path, ns=(0, len(content) * 10**9 + content.count(b"w")))  # a file system may tick slowly
        assert disk.sha256_of(path) == hashlib.sha256(content).hexdigest()
        assert disk.sha256_of(path) == hashlib.sha256(content).hexdigest()


def test_checksum_is_computed_once_also_under_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"content")
    known = disk.sha256_of(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    monkeypatch.setattr(disk.hashlib, "file_digest", None)
    assert disk.sha256_of(tmp_path / "b") == known


def test_files_come_sorted_by_relative_path(tmp_path: Path) -> None:
    for name in ("b/z", "a/y", "c", "b.txt", "a/x/w"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = [path.relative_to(tmp_path).as_posix() for path in disk.files_under(tmp_path)]
    assert names == ["a/x/w", "a/y", "b.txt", "b/z", "c"]


def test_replaced_text_is_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text in ("first, longer", "日本"):
        disk.replace_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_replace_keeps_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def fail(handle: int) -> None:
        raise OSError("disk")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk"):
        disk.replace_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_is_not_replaced_and_named_as_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for folder in (tmp_path / "folder", Path(), Path("/")):
        with pytest.raises(IsADirectoryError) as caught:
            disk.replace_text(folder, "new")
        assert caught.value.filename == str(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_flush_reaches_every_file_and_folder_but_the_one_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "deep/b", "deep/scratch/c", "scratch/d"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    flushed: set[int] = set()
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.add(os.fstat(handle).st_ino))
    disk.flush_to_disk(tmp_path, without="scratch")
    wanted = {tmp_path, *(tmp_path / name for name in ("a", "deep", "deep/b", "deep/scratch", "deep/scratch/c"))}
    assert flushed == {path.stat().st_ino for path in wanted}


def test_free_space_of_a_path_that_does_not_exist_yet(tmp_path: Path) -> None:
    assert disk.free_bytes(tmp_path / "build" / "base-12345678.partial") > 0


def test_never_two_holders_while_the_file_comes_and_goes(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    inside: list[int] = []
    overlaps: list[list[int]] = []
    times = 40

    def work(number: int) -> None:
        for _ in range(times):
            with disk.exclusive(path, on_wait=lambda holder: None):
                inside.append(number)
                if len(inside) > 1:
                    overlaps.append(list(inside))
                time.sleep(0.0005)
                inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == []
    assert not path.exists()


def test_a_waiting_process_names_the_holder_once(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    waited_for: list[str] = []
    entered = threading.Event()

    def wait() -> None:
        with disk.exclusive(path, on_wait=waited_for.append):
            entered.set()

    with disk.exclusive(path, on_wait=waited_for.append):
        thread = threading.Thread(target=wait)
        thread.start()
        while not waited_for:
            time.sleep(0.001)
        assert not entered.is_set()
    thread.join()
    assert waited_for == [str(os.getpid())]


def test_a_failure_inside_releases_it(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with pytest.raises(RuntimeError), disk.exclusive(path, on_wait=print):
        raise RuntimeError
    assert not path.exists()


def test_a_file_that_a_killed_holder_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "a.lock").write_text("99999999")
    with disk.exclusive(tmp_path / "a.lock", on_wait=lambda holder: pytest.fail("nobody holds it")):
        pass
    assert not (tmp_path / "a.lock").exists()
