"""Disk access for the store and the commands: free space, checksums, writes that survive a power cut, and a lock."""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from common.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT}
# Libraries written in Rust or C++ raise their own class, with the system's sentence in the message.
_FULL_SENTENCES = ("No space left on device", "Disk quota exceeded")

_known_sha256: dict[tuple[int, int, int, int], str] = {}


def full_disk_error(error: BaseException, path: Path | None = None) -> UserError | None:
    """A UserError with the free bytes if `error`, or a cause of it, is a full disk; else None.

    It names the error's file, or `path`, the folder that was written to.
    """
    cause: BaseException | None = error
    while cause is not None:
        by_number = isinstance(cause, OSError) and cause.errno in _FULL
        if by_number or any(sentence in str(cause) for sentence in _FULL_SENTENCES):
            named = cause.filename if isinstance(cause, OSError) else None
            place = Path(os.fsdecode(named)) if named is not None else path or Path.cwd()
            wanted, got = f"room on the disk for {place}", f"a full disk: {free_bytes(place):,} bytes free"
            next_step = "free some space and start again; finished artifacts are kept"
            return UserError("no-space", wanted=wanted, got=got, next_step=next_step)
        cause = cause.__cause__ or cause.__context__
    return None


@contextlib.contextmanager
def full_disk_named(path: Path) -> Generator[None]:
    """Turns a full disk inside the block into the UserError of `full_disk_error`."""
    try:
        yield
    except Exception as error:
        explained = None if isinstance(error, UserError) else full_disk_error(error, path)
        if explained is None:
            raise
        raise explained from error


def free_bytes(path: Path) -> int:
    """Bytes that this user may still write on the disk of `path`, or of its nearest parent that exists."""
    place = path.absolute()
    return shutil.disk_usage(next(each for each in (place, *place.parents) if each.is_dir())).free


def files_under(folder: Path) -> Iterator[Path]:
    """Every file under `folder`, sorted by relative path (so that the order is the same on every system)."""
    files = (Path(root) / name for root, _, names in os.walk(folder, followlinks=True) for name in names)
    yield from sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes; computed once a process while the file keeps its size and time."""
    identity = _identity(path)
    if identity not in _known_sha256:
        with path.open("rb") as file:
            _known_sha256[identity] = hashlib.file_digest(file, "sha256").hexdigest()
    return _known_sha256[identity]


def remember_sha256(path: Path, sha256: str) -> None:
    """Record a known checksum of the present file for `sha256_of`, so that gigabytes are not read again."""
    _known_sha256[_identity(path)] = sha256


def _identity(path: Path) -> tuple[int, int, int, int]:
    """By inode, not by name: a stage's files are hashed before its folder gets its final name."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def flush_to_disk(folder: Path, *, without: str = "") -> None:
    """fsync `folder` and everything under it except a folder `without` in it: a power cut after it loses nothing."""
    for root, folders, names in os.walk(folder):
        if Path(root) == folder and without in folders:
            folders.remove(without)
        for name in (*names, "."):
            flush_one(Path(root, name))


def flush_one(path: Path) -> None:
    """fsync one file, or one folder's list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_text(path: Path, text: str) -> None:
    """Replace a file atomically: a reader sees the old text or the new, and a power cut leaves one of them.

    OSError if it cannot be written; no temporary file remains.
    """
    require_no_folder(path)
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        with new.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    flush_one(path.parent)


def require_no_folder(path: Path) -> None:
    """Raises IsADirectoryError if `path`, the name of a file to write, is a folder."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))


@contextlib.contextmanager
def exclusive(path: Path, *, on_wait: Callable[[str], None]) -> Generator[None]:
    """Hold the lock file `path` during the block, and then remove it. The system releases it when the holder dies,
    even by SIGKILL. `on_wait` is called once, with the holder's process id, before waiting for another process.
    """
    handle = _acquire(path, on_wait)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _acquire(path: Path, on_wait: Callable[[str], None]) -> int:
    reported = False
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not reported:
                on_wait(os.pread(handle, 20, 0).decode())
                reported = True
            fcntl.flock(handle, fcntl.LOCK_EX)
        # The previous holder has removed its file: a lock on a file without a name would protect nothing.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)
