"""SIGKILL at any moment, and two processes at once: the result is what one quiet process makes.

The stage under test is a chain of hashes with a checkpoint now and then. It runs in processes of its own, since only a
real kill leaves what a kill leaves.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

TOY = '''
import hashlib, json, os, signal, sys, time
from dataclasses import dataclass
from pathlib import Path
from common.device import Machine
from common.disk import replace_text
from common.store import Store, building, stage

STEPS, PAUSE = 60, 0.004
MACHINE = Machine(device="cpu", compute_dtype="float32", cpu="any", gpu=None, memory_bytes=1, os="any", threads=1)
building.probe = lambda record: MACHINE

@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    seed: str

def log(word):
    with open("log.txt", "a") as file:
        file.write(word + "\\n")

@stage(version=1)
def chain(config, workspace, before=None):
    log(f"started {workspace.folder.name[0]}")
    checkpoint = workspace.folder / "scratch" / "state.json"
    step, value = 0, config.seed + ("" if before is None else (before / "out.bin").read_bytes().hex())
    if checkpoint.exists():
        step, value = json.loads(checkpoint.read_text())
        log(f"resumed {workspace.folder.name[0]}")
    while step < STEPS:
        value = hashlib.sha256(f"{step} {value}".encode()).hexdigest()
        step += 1
        time.sleep(PAUSE)
        if step % 4 == 0:
            replace_text(checkpoint, json.dumps([step, value]))
    (workspace.folder / "parts").mkdir(exist_ok=True)
    for index in range(3):
        (workspace.folder / "parts" / f"{index}.bin").write_bytes(value.encode() * 1000 * index)
    (workspace.folder / "out.bin").write_bytes(value.encode())
    log(f"done {workspace.folder.name[0]}")
    return {"value": value}

def kill_at(place, before):
    """Wrap one function of the store so that the process dies just before or just after it works."""
    owner, _, name = place.rpartition(".")
    owner = building if not owner else __import__(owner)
    real = getattr(owner, name)
    def wrapped(*arguments, **names):
        if place == "os.replace" and "manifest" not in str(arguments[1]):
            return real(*arguments, **names)
        if not before:
            real(*arguments, **names)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(owner, name, wrapped)

if __name__ == "__main__":
    import toy
    toy.building.probe = building.probe
    if len(sys.argv) > 2:
        kill_at(sys.argv[2], sys.argv[3] == "before")
    store = Store(Path(sys.argv[1]))
    a = store.build("a", toy.chain, toy.Config(seed="s"))
    store.build("b", toy.chain, toy.Config(seed="t"), a)
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "toy.py").write_text(TOY)
    return tmp_path


def start(folder: Path, build: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "toy.py", build, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(folder: Path, build: str, *arguments: str) -> str:
    process = start(folder, build, *arguments)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    return output


def contents(build: Path) -> dict[str, object]:
    """Every file's bytes by relative path; of manifests, all but time and memory."""
    found: dict[str, object] = {}
    for path in sorted(build.rglob("*")):
        if path.name == "manifest.json":
            manifest = json.loads(path.read_text())
            measured = ("seconds", "peak_bytes", "resumed")
            found[str(path.relative_to(build))] = {k: v for k, v in manifest.items() if k not in measured}
        elif path.is_file():
            found[str(path.relative_to(build))] = path.read_bytes()
    return found


@dataclass(frozen=True, slots=True)
class Quiet:
    """What a run that is never killed makes, and how long it takes."""

    files: dict[str, object]
    seconds: float


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Quiet:
    folder = tmp_path_factory.mktemp("quiet")
    (folder / "toy.py").write_text(TOY)
    begin = time.perf_counter()
    finish(folder, "quiet")
    return Quiet(contents(folder / "quiet"), time.perf_counter() - begin)


def test_sigkill_at_random_moments_changes_nothing(folder: Path, quiet: Quiet) -> None:
    seeded = random.Random(0)
    for _ in range(20):
        process = start(folder, "killed")
        time.sleep(seeded.uniform(0.3, 0.6) * quiet.seconds)
        process.kill()
        if process.wait() == 0:
            break
        # What has its final name is whole.
        for made in (folder / "killed").glob("?-????????"):
            found = {f"{made.name}/{name}": content for name, content in contents(made).items()}
            assert found.items() <= quiet.files.items()
    finish(folder, "killed")
    assert contents(folder / "killed") == quiet.files
    log = (folder / "log.txt").read_text().splitlines()
    assert any(line.startswith("resumed") for line in log)


@pytest.mark.parametrize(
    ("place", "moment", "starts"),
    [
        ("list_files", "before", 2),
        ("flush_to_disk", "after", 2),
        ("replace_text", "before", 2),
        ("os.replace", "before", 2),  # half of the manifest's own atomic write
        ("replace_text", "after", 1),  # the manifest is there: nothing runs again
        ("shutil.rmtree", "after", 1),
        ("os.rename", "before", 1),
        ("os.rename", "after", 1),
    ],
)
def test_sigkill_while_the_store_completes(folder: Path, quiet: Quiet, place: str, moment: str, starts: int) -> None:
    process = start(folder, "killed", place, moment)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    finish(folder, "killed")
    assert contents(folder / "killed") == quiet.files
    assert (folder / "log.txt").read_text().splitlines().count("started a") == starts


def test_two_processes_at_once_make_it_once(folder: Path, quiet: Quiet) -> None:
    processes = [start(folder, "shared") for _ in range(3)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert contents(folder / "shared") == quiet.files
    log = (folder / "log.txt").read_text().splitlines()
    assert log.count("started a") == log.count("started b") == 1
    assert sum("waiting for its result" in output for output in outputs) >= 1


def test_one_that_waits_takes_over_when_the_holder_is_killed(folder: Path, quiet: Quiet) -> None:
    holder = start(folder, "shared")
    assert holder.stdout is not None
    while not list((folder / "shared").glob("a-*.partial/scratch/state.json")):
        time.sleep(0.002)
    holder.send_signal(signal.SIGSTOP)
    waiting = start(folder, "shared")
    assert waiting.stdout is not None
    assert f"another process ({holder.pid})" in waiting.stdout.readline()
    holder.kill()
    holder.wait()
    waiting.communicate(timeout=60)
    assert waiting.returncode == 0
    assert contents(folder / "shared") == quiet.files
    assert "resumed a" in (folder / "log.txt").read_text()
