"""Running a stage: reuse a finished artifact, resume what a kill left, rename the folder when it is complete.

A stage works in `<name>-<key8>.partial/` under a lock. When it returns, its files are flushed to disk, the manifest is
written, `scratch/` is deleted and the folder gets its final name: at every moment there is the whole artifact or none.
A stage that fails or is killed leaves its partial folder; its own checkpoints decide what the next start reuses. One
that refuses its input or settings (InputError), or has written nothing yet, leaves nothing.

A stage that cannot run on this machine returns `not_here(reason)`, and its artifact holds that reason and no files. It
is reused only while the stage's own test, `@stage(version=.., can_run=test)`, gives a reason; where the test gives
None, the folder is emptied under the lock and the stage runs. Folder and manifest have the same key in both cases, so
that a result also serves the machines that could not make it. Readers of the artifact get another key for a reason
(`key_of`), and so are built again when the result replaces it.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from common.device import Machine, probe, read_machine, write_machine
from common.disk import exclusive, files_under, flush_one, flush_to_disk, full_disk_named, replace_text
from common.errors import InputError, UserError
from common.heap import retain_freed_memory, trim_freed_memory
from common.launch import num_processes
from common.metrics import peak_bytes, reset_peak
from common.store.artifacts import (
    MANIFEST_FILE,
    NOT_HERE,
    SCRATCH_FOLDER,
    Artifact,
    check_checksums,
    is_artifact,
    key_of,
    list_files,
    open_artifact,
    read_manifest,
)
from common.store.keys import FORMAT, artifact_key, content_hash, readable, reason_key

_MACHINE_FILE = "machine.json"

StageFunction = Callable[..., dict[str, Any]]
"""`f(config, workspace, *input_folders)`; the folder of an omitted input is None. Returns facts: JSON for the manifest,
where `tokens_per_s` also appears in the stage's line, and `summary` and each of `warnings` in a line of its own."""

Function = TypeVar("Function", bound=StageFunction)


@dataclass(frozen=True, kw_only=True, slots=True)
class Workspace:
    """What a stage gets in addition to its config and its inputs."""

    folder: Path
    """Where it writes. May hold its own earlier work, to resume from. Its `scratch/` exists, and goes at the end."""
    machine: Machine
    """What it computes on."""


def stage(*, version: int, can_run: Callable[[Any], str | None] | None = None) -> Callable[[Function], Function]:
    """Mark a top-level function as a stage; raise `version` when its output changes: all that it made is built again.

    `can_run`, for stages that may return `not_here`, takes the stage's config and returns the reason why this machine
    cannot run it, or None if it can.
    """

    def mark(function: Function) -> Function:
        function.__dict__.update(version=version, can_run=can_run)
        return function

    return mark


def not_here(reason: str) -> dict[str, Any]:
    """The facts of a stage that cannot run on this machine; the stage may add others."""
    return {NOT_HERE: reason}


def say(line: str) -> None:
    """Print a line and flush it, for readers that follow stdout in a file."""
    print(line, flush=True)


class Store:
    """A build folder: `<root>/<name>-<key8>/` for each artifact, and `<root>/machine.json`."""

    def __init__(self, root: Path, *, report: Callable[[str], None] = say) -> None:
        self.root, self._report = root, report

    @cached_property
    def machine(self) -> Machine:
        """Measured for the first stage that runs; reading a finished build does not need it."""
        return probe(self.root / _MACHINE_FILE)

    def build(self, name: str, function: StageFunction, config: Any, *inputs: Artifact | None) -> Artifact:
        """The artifact that `function` makes of `config` and `inputs`: reused if it is finished, else made now.

        UserError for a damaged artifact, a full disk, or what the stage itself refuses. Finished artifacts and, except
        after an InputError, the work of the refused stage are kept.
        """
        return self._job(name, function, config, inputs).obtain(lambda: self.machine)

    def expected(self, name: str, function: StageFunction, config: Any, *inputs: Artifact | None) -> Artifact:
        """What `build` would return, without building: the finished artifact, or its key and folder with no manifest.

        UserError for a damaged artifact, or a library that should be installed (from the stage's `can_run`).
        """
        return self._job(name, function, config, inputs).expected()

    def _job(self, name: str, function: StageFunction, config: Any, inputs: Sequence[Artifact | None]) -> "_Job":
        keys = [artifact and artifact.key for artifact in inputs]
        folders = [artifact and artifact.folder for artifact in inputs]
        key = _key(name, function, config, keys)
        return _Job(name, function, config, key, keys, folders, self.root / f"{name}-{key[:8]}", self._report)


def run_alone(
    function: StageFunction, config: Any, out: Path, *inputs: Path | None, report: Callable[[str], None] = say
) -> Artifact:
    """One stage by itself, into exactly `out`: the rules of `Store.build`, for `python -m distill ...` and the like.

    Of `inputs`, folders or files that the stage reads, an artifact counts by its key, anything else by its content.
    UserError as `Store.build`, and "exists" when `out` holds anything else: no result is ever overwritten.
    """
    out = Path(os.path.abspath(out))  # "." and ".." have no name that a partial folder could be derived from
    keys = [
        path and (key_of(read_manifest(path)) if is_artifact(path) else content_hash(path, where="an input"))
        for path in inputs
    ]
    key = _key(function.__name__, function, config, keys)
    _refuse_other_content(out, key)
    job = _Job(function.__name__, function, config, key, keys, inputs, out, report)
    return job.obtain(lambda: probe(job.partial / SCRATCH_FOLDER / _MACHINE_FILE))


@dataclass(frozen=True, slots=True)
class _Job:
    """One stage to run: the function, what it reads and the folder that it fills."""

    name: str
    function: StageFunction
    config: Any
    key: str
    inputs: Sequence[str | None]
    input_folders: Sequence[Path | None]
    folder: Path
    report: Callable[[str], None]

    @property
    def partial(self) -> Path:
        """Named by the key: a run with other settings must not resume from this one's checkpoints."""
        stem = self.folder.name.removesuffix(f"-{self.key[:8]}")
        return self.folder.with_name(f"{stem}-{self.key[:8]}.partial")

    def obtain(self, machine: Callable[[], Machine]) -> Artifact:
        if num_processes() > 1:
            wanted, got = "one process for a stage: its folder has one owner", f"WORLD_SIZE {num_processes()}"
            next_step = "start it without torchrun or accelerate launch"
            raise UserError("contradiction", wanted=wanted, got=got, next_step=next_step)
        lock = self.folder.with_name(self.folder.name + ".lock")
        if not self.partial.exists() and not lock.exists() and (finished := self._finished()):
            return self._reported(finished, "done before")
        with full_disk_named(self.partial):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with exclusive(
                lock, on_wait=lambda by: self._say(f"another process ({by}) is at it; waiting for its result")
            ):
                # Checked again under the lock: another process may have made it in the meantime.
                if finished := self._finished():
                    shutil.rmtree(self.partial, ignore_errors=True)
                    return self._reported(finished, "done before")
                self._drop_outdated_reason()
                resumed = self.partial.exists()
                (self.partial / SCRATCH_FOLDER).mkdir(parents=True, exist_ok=True)
                # A manifest in a partial folder: killed between the manifest's write and the rename, which remains.
                if not is_artifact(self.partial):
                    try:
                        self._work(self._machine(machine), resumed=resumed)
                    except UserError as error:
                        self._remove_useless(error)
                        raise
                return self._complete()

    def expected(self) -> Artifact:
        if finished := self._finished():
            return finished
        key = self.key if self._reason() is None else reason_key(self.key)
        return Artifact(name=self.name, key=key, folder=self.folder, manifest={})

    def _reason(self) -> str | None:
        """Why this machine cannot run the stage, by the stage's own test."""
        can_run = self.function.__dict__["can_run"]
        return None if can_run is None else can_run(self.config)

    def _finished(self) -> Artifact | None:
        """The artifact, if it is finished and holds no outdated reason."""
        artifact = open_artifact(self.folder, key=self.key) if _holds_something(self.folder) else None
        return None if artifact is None or self._is_outdated(artifact) else artifact

    def _is_outdated(self, artifact: Artifact) -> bool:
        """Whether it holds a reason that is not true here."""
        return artifact.reason is not None and self._reason() is None

    def _drop_outdated_reason(self) -> None:
        """Remove what another machine, or this one in an earlier state, has left instead of a result."""
        if is_artifact(self.folder):  # by renaming first, so that a kill in between leaves no damaged artifact
            shutil.rmtree(self.partial, ignore_errors=True)
            os.rename(self.folder, self.partial)
        if is_artifact(self.partial) and self._is_outdated(open_artifact(self.partial, key=self.key)):
            shutil.rmtree(self.partial)

    def _machine(self, measured: Callable[[], Machine]) -> Machine:
        """What the stage computes on; one that was begun in another precision goes on in that one."""
        record = self.partial / SCRATCH_FOLDER / _MACHINE_FILE
        begun = read_machine(record) if record.exists() else None
        machine = measured()
        if begun is not None and begun.compute_dtype != machine.compute_dtype:
            self._say(f"goes on in {begun.compute_dtype}, in which it was begun")
            machine = replace(machine, compute_dtype=begun.compute_dtype)
        write_machine(record, machine)
        return machine

    def _work(self, machine: Machine, *, resumed: bool) -> None:
        for folder in self.input_folders:
            if folder is not None and is_artifact(folder):
                check_checksums(folder)
        for half_written in self.partial.glob(f"{MANIFEST_FILE}.*"):
            half_written.unlink()
        if machine.device == "cpu":
            retain_freed_memory()
        trim_freed_memory()  # what earlier stages kept must not count in this one's peak
        reset_peak()
        start = time.perf_counter()
        facts = self.function(self.config, Workspace(folder=self.partial, machine=machine), *self.input_folders)
        if NOT_HERE in facts:
            assert self.function.__dict__["can_run"], f"{self.name} gives a reason: mark it with @stage(can_run=..)"
            for path in self.partial.iterdir():  # of a start on a machine that could run it
                if path.name != SCRATCH_FOLDER:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        manifest = {
            "format": FORMAT,
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
        """Remove the partial folder of a refused run if no later start can use its content."""
        written = (path.relative_to(self.partial).parts for path in files_under(self.partial))
        if isinstance(error, InputError) or all(parts == (SCRATCH_FOLDER, _MACHINE_FILE) for parts in written):
            shutil.rmtree(self.partial, ignore_errors=True)

    def _complete(self) -> Artifact:
        artifact = open_artifact(self.partial, key=self.key)
        shutil.rmtree(self.partial / SCRATCH_FOLDER)
        flush_one(self.partial)
        os.rename(self.partial, self.folder)
        flush_one(self.folder.parent)
        manifest, speed = artifact.manifest, artifact.manifest["facts"].get("tokens_per_s")
        said = f"{manifest['seconds']:8.1f} s  peak {manifest['peak_bytes'] / 2**30:5.2f} GiB"
        return self._reported(replace(artifact, folder=self.folder), said + (f"  {speed:,.0f} tok/s" if speed else ""))

    def _reported(self, artifact: Artifact, said: str) -> Artifact:
        self._say(said if artifact.reason is None else f"not here: {artifact.reason}")
        facts = artifact.manifest["facts"]
        summary = [facts["summary"]] if "summary" in facts else []
        for line in (*summary, *(f"warning: {each}" for each in facts.get("warnings", ()))):
            self.report(f"{'':<16}  {line}")
        return artifact

    def _say(self, text: str) -> None:
        self.report(f"{self.name:<16}  {text}")


def _key(name: str, function: StageFunction, config: Any, inputs: Sequence[str | None]) -> str:
    assert "version" in function.__dict__, f"{_function_name(function)} is no stage: mark it with @stage(version=1)"
    return artifact_key(name, _function_name(function), function.__dict__["version"], config, inputs)


def _function_name(function: StageFunction) -> str:
    return f"{function.__module__}:{function.__qualname__}"


def _holds_something(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def _refuse_other_content(out: Path, key: str) -> None:
    with contextlib.suppress(UserError):  # no artifact, a damaged one or one of another version: not ours to replace
        if not _holds_something(out) or read_manifest(out)["key"] == key:
            return
    wanted = f"a new or empty folder at {out}, or the same result from before"
    got = "one that holds something else, or was made with other inputs or settings"
    raise UserError("exists", wanted=wanted, got=got, next_step="choose another --out, or delete it")
