"""Running a stage: reuse what is finished, go on from what a kill left, rename the folder when it is complete.

A stage works in `<name>-<key8>.partial/` under a lock. When it returns, its files are forced to disk, then the
manifest, then `scratch/` goes and the folder gets its final name: at every moment there is the whole artifact or none.
A stage that fails or is killed leaves its partial folder, and decides by its own checkpoints what it can reuse of it.
One that refuses its input or settings (InputError) leaves nothing, nor does one that had written nothing yet.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from common.device import Machine, probe
from common.disk import files_under, flush_one, flush_to_disk, full_disk_error, replace_text
from common.errors import InputError, UserError
from common.heap import retain_freed_memory, trim_freed_memory
from common.launch import num_processes
from common.metrics import peak_bytes, reset_peak
from common.store.artifacts import (
    MANIFEST_FILE,
    SCRATCH_FOLDER,
    Artifact,
    check_checksums,
    list_files,
    open_artifact,
    read_manifest,
)
from common.store.keys import artifact_key, content_hash, readable
from common.store.locks import exclusive

_MACHINE_FILE = "machine.json"

StageFunction = Callable[..., dict[str, Any]]
"""`f(config, workspace, *input_folders)`; a folder is None where the recipe leaves that input out. Returns facts: JSON
for the manifest, where `tokens_per_s` also appears in the stage's line."""

Function = TypeVar("Function", bound=StageFunction)


@dataclass(frozen=True, kw_only=True, slots=True)
class Workspace:
    """What a stage gets beside its config and its inputs."""

    folder: Path
    """Where it writes. May hold its own earlier work: resume from it. `scratch/` is there, and deleted at the end."""
    machine: Machine
    """What it computes on."""


def stage(*, version: int) -> Callable[[Function], Function]:
    """Mark a top-level function as a stage. A new `version` rebuilds what it made: raise it when the output changes."""

    def mark(function: Function) -> Function:
        function.__dict__["version"] = version
        return function

    return mark


def say(line: str) -> None:
    """Print a line at once, also where stdout is a file that someone follows."""
    print(line, flush=True)


class Store:
    """A build folder: `<root>/<name>-<key8>/` an artifact, `<root>/machine.json` what computes."""

    def __init__(self, root: Path, *, report: Callable[[str], None] = say) -> None:
        self.root = root
        self._report = report

    @cached_property
    def machine(self) -> Machine:
        """Measured for the first stage that really runs; a finished build is read without it."""
        return probe(self.root / _MACHINE_FILE)

    def build(self, name: str, function: StageFunction, config: Any, *inputs: Artifact | None) -> Artifact:
        """The artifact that `function` makes of `config` and `inputs`: as it was made before, or made now.

        Raises:
            UserError: a damaged artifact, a full disk, or what the stage itself refuses. What was finished stays, but
                for an InputError.
        """
        keys = [None if artifact is None else artifact.key for artifact in inputs]
        key = _key(name, function, config, keys)
        folder = self.root / f"{name}-{key[:8]}"
        job = _Job(
            name=name,
            function=function,
            config=config,
            key=key,
            inputs=keys,
            input_folders=[None if artifact is None else artifact.folder for artifact in inputs],
            folder=folder,
            partial=folder.with_name(folder.name + ".partial"),
            lock=folder.with_name(folder.name + ".lock"),
        )
        return job.obtain(lambda: self.machine, self._report)


def run_alone(
    function: StageFunction,
    config: Any,
    out: Path,
    *inputs: Path | None,
    report: Callable[[str], None] = say,
) -> Artifact:
    """One stage by itself, into exactly `out`: the rules of `Store.build`, for `python -m distill ...` and the like.

    Args:
        inputs: folders (or files) that the stage reads; an artifact counts by its key, anything else by its content.

    Raises:
        UserError: as `Store.build`, and when `out` holds something else already: nothing is ever overwritten.
    """
    out = Path(os.path.abspath(out))  # "." and ".." have no name of their own to put a partial folder beside
    keys = [None if path is None else _input_key(path) for path in inputs]
    key = _key(function.__name__, function, config, keys)
    _refuse_other_content(out, key)
    # The key in the partial's name: a run with other settings must not resume from this one's checkpoints.
    partial = out.with_name(f"{out.name}-{key[:8]}.partial")
    job = _Job(
        name=function.__name__,
        function=function,
        config=config,
        key=key,
        inputs=keys,
        input_folders=list(inputs),
        folder=out,
        partial=partial,
        lock=out.with_name(out.name + ".lock"),
    )
    return job.obtain(lambda: probe(partial / SCRATCH_FOLDER / _MACHINE_FILE), report)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """One stage that is wanted: what to run on what, and the names of its folders."""

    name: str
    function: StageFunction
    config: Any
    key: str
    inputs: list[str | None]
    input_folders: Sequence[Path | None]
    folder: Path
    partial: Path
    lock: Path

    def obtain(self, machine: Callable[[], Machine], report: Callable[[str], None]) -> Artifact:
        if num_processes() > 1:
            raise UserError(
                wanted="one process for a stage: its folder has one owner",
                got=f"WORLD_SIZE {num_processes()} in the environment",
                next_step="start it without torchrun or accelerate launch",
            )
        left_over = self.partial.exists() or self.lock.exists()
        if _holds_something(self.folder) and not left_over:
            return self._reuse(report)
        with _full_disk_named(self.partial):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with exclusive(self.lock, on_wait=lambda holder: report(self._waiting(holder))):
                # Looked at again under the lock: the process that we waited for may have made it.
                if _holds_something(self.folder):
                    artifact = self._reuse(report)
                    shutil.rmtree(self.partial, ignore_errors=True)
                    return artifact
                resumed = self.partial.exists()
                (self.partial / SCRATCH_FOLDER).mkdir(parents=True, exist_ok=True)
                # A manifest in a partial folder: killed between the last write and the rename. Only those remain.
                if not (self.partial / MANIFEST_FILE).exists():
                    try:
                        self._work(machine(), resumed=resumed)
                    except UserError as error:
                        self._remove_useless(error)
                        raise
                return self._complete(report)

    def _work(self, machine: Machine, *, resumed: bool) -> None:
        for folder in self.input_folders:
            if folder is not None and _is_artifact(folder):
                check_checksums(folder)
        for half_written in self.partial.glob(f"{MANIFEST_FILE}.*"):
            half_written.unlink()
        if machine.device == "cpu":
            retain_freed_memory()
        trim_freed_memory()  # what earlier stages kept is not this one's peak
        reset_peak()
        start = time.perf_counter()
        facts = self.function(self.config, Workspace(folder=self.partial, machine=machine), *self.input_folders)
        manifest = {
            "name": self.name,
            "key": self.key,
            "function": _function_name(self.function),
            "version": self.function.__dict__["version"],
            "config": readable(self.config),
            "inputs": self.inputs,
            "facts": facts,
            "files": list_files(self.partial),
            "machine": machine.to_json(),
            "seconds": round(time.perf_counter() - start, 3),
            "resumed": resumed,
            "peak_bytes": peak_bytes(),
        }
        text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False)
        flush_to_disk(self.partial, without=SCRATCH_FOLDER)
        replace_text(self.partial / MANIFEST_FILE, text + "\n")

    def _remove_useless(self, error: UserError) -> None:
        """The partial folder of a refused run goes when no later start can use what is in it."""
        written = (path.relative_to(self.partial).parts for path in files_under(self.partial))
        if isinstance(error, InputError) or all(parts == (SCRATCH_FOLDER, _MACHINE_FILE) for parts in written):
            shutil.rmtree(self.partial, ignore_errors=True)

    def _complete(self, report: Callable[[str], None]) -> Artifact:
        artifact = open_artifact(self.partial, key=self.key)
        shutil.rmtree(self.partial / SCRATCH_FOLDER)
        flush_one(self.partial)
        os.rename(self.partial, self.folder)
        flush_one(self.folder.parent)
        manifest = artifact.manifest
        speed = manifest["facts"].get("tokens_per_s")
        line = f"{self.name:<16}  {manifest['seconds']:8.1f} s  peak {manifest['peak_bytes'] / 2**30:5.2f} GiB"
        report(line + (f"  {speed:,.0f} tok/s" if speed else ""))
        return Artifact(name=self.name, key=self.key, folder=self.folder, manifest=manifest)

    def _reuse(self, report: Callable[[str], None]) -> Artifact:
        artifact = open_artifact(self.folder, key=self.key)
        report(f"{self.name:<16}  done before")
        return artifact

    def _waiting(self, holder: str) -> str:
        return f"{self.name:<16}  another process ({holder}) is at it; waiting for its result"


def _key(name: str, function: StageFunction, config: Any, inputs: Sequence[str | None]) -> str:
    assert "version" in function.__dict__, f"{_function_name(function)} is no stage: mark it with @stage(version=1)"
    return artifact_key(name, _function_name(function), function.__dict__["version"], config, inputs)


def _function_name(function: StageFunction) -> str:
    return f"{function.__module__}:{function.__qualname__}"


def _input_key(path: Path) -> str:
    return read_manifest(path)["key"] if _is_artifact(path) else content_hash(path, where="an input")


def _is_artifact(path: Path) -> bool:
    """Whether a folder claims to be ours; a model from elsewhere may have files of any name but this."""
    return (path / MANIFEST_FILE).is_file()


def _holds_something(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def _refuse_other_content(out: Path, key: str) -> None:
    if not _holds_something(out):
        return
    if not _is_artifact(out) or read_manifest(out)["key"] != key:
        raise UserError(
            wanted=f"a new or empty folder at {out}, or the same result from before",
            got="one that holds something else, or was made with other inputs or settings",
            next_step="choose another --out, or delete it",
        )


@contextlib.contextmanager
def _full_disk_named(path: Path) -> Generator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        explained = full_disk_error(error, path)
        if explained is None:
            raise
        raise explained from error
