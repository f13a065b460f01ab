"""The set-up from nothing to the stamp, on a product in miniature: really made, twice at once, killed, and offline."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from setup_project import environment, finish, make_index, make_project, start


@dataclass(frozen=True, kw_only=True)
class Made:
    """A finished set-up, and what it printed."""

    project: Path
    env: dict[str, str]
    outputs: list[tuple[int, str, str]]


def _wheels(env: dict[str, str]) -> list[Path]:
    return list((Path(env["XDG_CACHE_HOME"]) / "tinyswallow" / "wheels").glob("*/*.whl"))


def _cmake_args(project: Path) -> str:
    code = "import llama_cpp; print(llama_cpp.CMAKE_ARGS)"
    python = project / ".venv" / "bin" / "python"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout


def _inode_and_time(path: Path) -> tuple[int, int]:
    return path.stat().st_ino, path.stat().st_mtime_ns


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two set-ups of one checkout, started at the same moment, over what a killed compile left in the cache."""
    folder = tmp_path_factory.mktemp("made")
    env = environment(make_index(folder / "index"), folder / "cache", PIP_USER="1", PYTHONPATH="/nowhere")
    project = make_project(folder / "check out")
    both = [start(project, env) for _ in range(2)]
    return Made(project=project, env=env, outputs=[finish(process) for process in both])


def test_two_at_once_set_up_once(made: Made) -> None:
    assert [status for status, _, _ in made.outputs] == [0, 0], made.outputs
    texts = [out for _, out, _ in made.outputs]
    assert sum("set-up done in" in text for text in texts) == 1
    assert sum("another set-up of this checkout is at work" in text for text in texts) <= 1


def test_the_first_line_says_how_long_it_takes(made: Made) -> None:
    worker = next(out for _, out, _ in made.outputs if "set-up done" in out)
    first = worker.splitlines()[0]
    assert first.startswith("setting up .venv with Python 3.") or first.startswith("another set-up")
    assert "minutes on 2 cores, this first time: llama.cpp is compiled and kept in" in worker


def test_llama_is_compiled_with_portable_flags_and_kept(made: Made) -> None:
    flags = _cmake_args(made.project)
    if os.uname().sysname == "Linux" and os.uname().machine == "x86_64":
        for flag in ("GGML_NATIVE=OFF", "GGML_AVX2=ON", "GGML_FMA=ON", "GGML_F16C=ON", "GGML_BMI2=ON"):
            assert f"-D{flag}" in flags
    assert "LLAVA_BUILD=OFF" in flags
    assert len(_wheels(made.env)) == 1
    leftovers = [path.name for path in _wheels(made.env)[0].parents[1].iterdir() if path.name.endswith(".partial")]
    assert leftovers == []


def test_the_second_call_takes_no_time_and_touches_nothing(made: Made) -> None:
    stamp = made.project / ".venv" / "complete.json"
    before = _inode_and_time(stamp)
    started = time.monotonic()
    # A PATH without any tool, and an index that is gone: it must not even try.
    env = made.env | {"PATH": "/nowhere", "PIP_FIND_LINKS": "/nowhere"}
    assert finish(start(made.project, env)) == (0, "", "")
    assert time.monotonic() - started < 1
    assert _inode_and_time(stamp) == before


def test_a_second_checkout_over_a_half_made_venv_does_not_compile_again(made: Made, tmp_path: Path) -> None:
    project = make_project(tmp_path / "second")
    (project / ".venv" / "lib").mkdir(parents=True)
    (project / ".venv" / "lib" / "half-copied").touch()
    before = _inode_and_time(_wheels(made.env)[0])
    # Were it to compile, the compiler would be looked for and not found.
    status, out, err = finish(start(project, made.env | {"CXX": "no-such-compiler"}))
    assert (status, err) == (0, "")
    assert "with llama.cpp from" in out.splitlines()[0]
    assert _inode_and_time(_wheels(made.env)[0]) == before
    assert not (project / ".venv" / "lib" / "half-copied").exists()
    assert "LLAVA_BUILD=OFF" in _cmake_args(project)


def test_killed_in_the_middle_of_the_compile_is_repaired_by_the_next_call(tmp_path: Path) -> None:
    env = environment(make_index(tmp_path / "index"), tmp_path / "cache")
    project = make_project(tmp_path / "checkout")
    killed = start(project, env | {"MINIATURE_COMPILE_SECONDS": "3"})
    log = project / ".venv" / "llama.log"
    while not (log.exists() and "Building wheel" in log.read_text()):
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (project / ".venv" / "complete.json").exists()

    status, out, err = finish(start(project, env))
    assert (status, err) == (0, "")
    # The orphaned compile was waited for and its wheel taken, not thrown away.
    assert out.splitlines()[0] == "another set-up of this checkout is at work: waiting for it"
    assert "with llama.cpp from" in out.splitlines()[1]
    assert json.loads((project / ".venv" / "complete.json").read_text())["python"] == [*sys.version_info[:2]]


def test_a_venv_of_somebody_else_is_left_alone(made: Made, tmp_path: Path) -> None:
    project = make_project(tmp_path / "checkout")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", project / ".venv"], check=True)
    before = sorted((project / ".venv").rglob("*"))
    status, _, err = finish(start(project, made.env))
    assert status == 2 and err.startswith("error: wanted a .venv made by make") and err.count("\n") == 1
    assert sorted((project / ".venv").rglob("*")) == before


def test_a_package_that_is_nowhere_is_one_line_and_the_log_is_named(tmp_path: Path) -> None:
    env = environment(make_index(tmp_path / "index"), tmp_path / "cache", MINIATURE_COMPILE_SECONDS="600")
    project = make_project(tmp_path / "checkout", dependency="a-package-that-no-index-has")
    started = time.monotonic()
    status, _, err = finish(start(project, env))
    # The compile that runs beside it is ended, not waited for.
    assert time.monotonic() - started < 300
    assert status == 2
    assert err.startswith("error: wanted installing packages to work; got ERROR: Could not find a version")
    assert str(project / ".venv" / "install.log") in err
    assert "; next: correct what the log shows" in err
    assert err.count("\n") == 1
    assert not (project / ".venv" / "complete.json").exists()
