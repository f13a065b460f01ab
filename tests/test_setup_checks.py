"""What the set-up says on a machine that lacks something: one line with wanted, got and the next step, and not zero."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from setup_project import environment, finish, make_project, start

import setup_environment as setup

ONE_LINE = re.compile(r"error: wanted [^\n]+; got [^\n]+; next: [^\n]+\n?")
SCRIPT = Path(setup.__file__)


def _run_as(version: str, *arguments: str, path: str) -> "subprocess.CompletedProcess[str]":
    """The set-up under a Python that claims to be `version`, with only `path` to find others on."""
    numbers = (*(int(number) for number in version.split(".")), "final", 0)
    code = (
        "import runpy, sys\n"
        f"sys.version_info = {numbers}\n"
        f"sys.argv = [{str(SCRIPT)!r}, *{list(arguments)!r}]\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env={"PATH": path, "HOME": "/nowhere"}, capture_output=True, text=True)


def _executable(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("version", ["3.6.15", "3.8.18", "3.10.13", "3.14.0", "4.0.0"])
def test_a_wrong_python_that_was_named_is_refused(tmp_path: Path, version: str) -> None:
    done = _run_as(version, "--insist", path=str(tmp_path))
    assert done.returncode == 2
    assert ONE_LINE.fullmatch(done.stderr)
    assert f"wanted Python 3.11 to 3.13; got {version} at {sys.executable}" in done.stderr


def test_a_wrong_default_python_without_another_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    # A version manager's stand-in that only complains, and a Python that is too new.
    _executable(tmp_path / "python3.12", "echo not activated >&2; exit 127")
    _executable(tmp_path / "python3", "echo 3 14")
    assert setup.find_supported() is None
    with pytest.raises(setup.SetupError) as error:
        setup.hand_over([])
    assert ONE_LINE.fullmatch(str(error.value))


def test_a_wrong_default_python_hands_over_to_a_right_one(tmp_path: Path) -> None:
    marker = tmp_path / "called"
    answer = f'if [ "$1" = -c ]; then echo 3 12; else echo "$@" > {marker}; exit 7; fi'
    _executable(tmp_path / "python3.12", answer)
    _executable(tmp_path / "python3.11", "exit 1")
    project = make_project(tmp_path / "checkout")
    code = f"import sys; sys.path.insert(0, {str(project)!r}); import setup_environment as s; s.hand_over(['--some'])"
    done = subprocess.run([sys.executable, "-c", code], env={"PATH": str(tmp_path)})
    assert done.returncode == 7
    assert marker.read_text() == f"{project / 'setup_environment.py'} --some\n"


def test_the_script_reads_as_python_3_6() -> None:
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 6))
    builtin = {"dict", "list", "tuple", "set", "type"}
    for node in ast.walk(tree):
        # These parse everywhere, and fail when an old Python evaluates them as type hints.
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            assert node.value.id not in builtin, f"line {node.lineno}"
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            assert "fcntl" in ast.unparse(node), f"line {node.lineno}"
    assert not re.search(r"capture_output|text=True|missing_ok|:=|removeprefix|removesuffix", SCRIPT.read_text())


@pytest.mark.parametrize("name", ["python3.6", "python3.8", "python3.9", "python3.10", "python3.14"])
def test_a_real_old_or_new_python_says_its_line(name: str) -> None:
    if subprocess.run([name, "-c", ""], capture_output=True).returncode if shutil.which(name) else True:
        pytest.skip(f"no {name} here")
    done = subprocess.run([name, str(SCRIPT), "--insist"], capture_output=True, text=True)
    assert done.returncode == 2
    assert ONE_LINE.fullmatch(done.stderr)


def test_no_venv_module_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ensurepip" else real(name))
    with pytest.raises(setup.SetupError) as error:
        setup.check_machine(compiling=False)
    assert ONE_LINE.fullmatch(str(error.value))
    assert "python{}.{}-venv".format(*sys.version_info[:2]) in str(error.value)


def test_no_compiler_stops_before_anything_is_made(tmp_path: Path) -> None:
    project = make_project(tmp_path / "checkout")
    tools = tmp_path / "tools"
    tools.mkdir()
    # As on a Mac without the developer tools: the name is there, and only asks to install them.
    _executable(tools / "c++", "echo install the developer tools >&2; exit 1")
    env = environment(tmp_path, tmp_path / "cache", PATH=str(tools))
    env = {name: value for name, value in env.items() if name not in ("CC", "CXX")}
    status, out, err = finish(start(project, env))
    assert (status, out) == (2, "")
    assert ONE_LINE.fullmatch(err)
    assert "wanted a C and a C++ compiler for llama.cpp; got none that runs (tried c++, g++, clang++)" in err
    assert not (project / ".venv").exists()


def test_a_compiler_named_by_the_user_is_the_one_that_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    with pytest.raises(setup.SetupError, match=r"tried no-such-compiler\)"):
        setup.check_compiler()


def test_too_little_disk_is_said_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=int(3.5 * 2**30)))
    absent = tmp_path / "not" / "made yet"
    setup.check_disk({tmp_path: 3 * 2**30})
    # Two folders on one file system need their sum.
    with pytest.raises(setup.SetupError) as error:
        setup.check_disk({tmp_path: 3 * 2**30, absent: 2**30})
    assert ONE_LINE.fullmatch(str(error.value))
    assert "wanted 4 GiB of free disk" in str(error.value)
    assert "got 3.5 GiB" in str(error.value)


PIP_OFFLINE = """Looking in links: /x
WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(<pip.urllib3>)': /simple/torch/
ERROR: Could not find a version that satisfies the requirement torch==2.13.0 (from versions: none)
ERROR: No matching distribution found for torch==2.13.0
"""
PIP_NO_WHEEL = """ERROR: Could not find a version that satisfies the requirement torch==2.13.0 (from versions: 2.2.2)
ERROR: No matching distribution found for torch==2.13.0
"""
DISK_FULL = """Installing collected packages: torch
ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device
"""
COMPILE = """[17/83] Building CXX object src/llama.cpp.o
/src/llama.cpp:5:1: warning: unused
/src/llama.cpp:9:2: error: 'filesystem' is not a member of 'std'
ninja: build stopped: subcommand failed.
ERROR: Failed building wheel for llama-cpp-python
"""


@pytest.mark.parametrize(
    ("log", "says"),
    [
        (PIP_OFFLINE, "wanted a network for the work; got none that works: WARNING: Retrying"),
        (PIP_OFFLINE.splitlines()[1] + "\n" + PIP_NO_WHEEL.replace("2.2.2", "none"), "wanted a network"),
        (PIP_NO_WHEEL.replace("2.2.2", "none"), "wanted the work to work; got ERROR: Could not find a version"),
        (PIP_OFFLINE.splitlines()[1] + "\n" + COMPILE, "wanted the work to work; got /src/llama.cpp:9:2: error:"),
        (PIP_NO_WHEEL, "wanted the work to work; got ERROR: Could not find a version"),
        (DISK_FULL, "wanted room on the disk for the work; got a full disk"),
        (COMPILE, "wanted the work to work; got /src/llama.cpp:9:2: error: 'filesystem' is not"),
        ("ImportError: libgomp.so.1: cannot open\n", "got ImportError: libgomp.so.1"),
        ("", "wanted the work to work; got no output"),
    ],
)
def test_a_failed_tool_is_told_in_one_line_with_its_log(tmp_path: Path, log: str, says: str) -> None:
    path = tmp_path / "install.log"
    path.write_text(log)
    line = str(setup.explain("the work", path, ""))
    assert ONE_LINE.fullmatch(line)
    assert says in line
    assert str(path) in line


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    project = make_project(tmp_path / "checkout")
    (project / ".venv").write_text("a file where the folder should be")
    cache = tmp_path / "cache"
    env = environment(tmp_path, cache)
    code = "import setup_environment as s; print(s.wheel_folder())"
    folder = Path(subprocess.check_output([sys.executable, "-c", code], cwd=project, env=env, text=True).strip())
    assert cache in folder.parents
    folder.mkdir(parents=True)
    (folder / "llama_cpp_python-0.3.36-py3-none-any.whl").touch()
    status, _, err = finish(start(project, env))
    assert status == 2
    assert ONE_LINE.fullmatch(err)
    assert str(project / ".venv") in err


def test_the_stamp_depends_on_all_that_decides_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project(tmp_path / "checkout")
    monkeypatch.setattr(setup, "ROOT", project)
    monkeypatch.setattr(setup, "SCRIPT", project / "setup_environment.py")
    python = project / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert not setup.is_complete()
    setup.write_stamp()
    assert setup.is_complete()
    assert setup.is_complete(sys.version_info[:2])
    assert not setup.is_complete((3, 9))
    for name, text in (("pyproject.toml", "'x', "), ("constraints.txt", "\nx==1"), ("setup_environment.py", "\n#")):
        before = (project / name).read_text()
        (project / name).write_text(before.replace("[]", f"[{text}]") if name == "pyproject.toml" else before + text)
        assert not setup.is_complete(), name
        (project / name).write_text(before)
        assert setup.is_complete()
    # Style rules decide nothing; a Python that was uninstalled does.
    (project / "pyproject.toml").write_text((project / "pyproject.toml").read_text() + "line-length = 120\n")
    assert setup.is_complete()
    python.unlink()
    python.symlink_to("/nowhere/python3")
    assert not setup.is_complete()


def _make(project: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *arguments], cwd=project, env=env, capture_output=True, text=True)


def test_make_without_a_python_that_runs_says_so(tmp_path: Path) -> None:
    done = _make(make_project(tmp_path / "checkout"), "tinyswallow", "PYTHON=/no/such/python")
    assert done.returncode == 2
    line, rest = done.stderr.split("\n", 1)
    assert ONE_LINE.fullmatch(line)
    assert "/no/such/python" in line
    assert rest.startswith("make: ***")


@pytest.mark.parametrize(
    ("arguments", "called"),
    [
        (["tinyswallow"], ["-m recipes auto"]),
        (["tinyswallow", "RECIPE=my own/recipe.py"], ["-m recipes my own/recipe.py"]),
        (["test"], ["-m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15"]),
        (["chat"], ["-m eval.chat"]),
        (["chat", "MODEL=a b.gguf"], ["-m eval.chat a b.gguf"]),
        (["inspect"], ["-m recipes.inspect mini"]),
        (["inspect", "RECIPE=own.py"], ["-m recipes.inspect own.py"]),
        (["compare"], ["-m studies.compare"]),
    ],
)
def test_make_names_the_commands(tmp_path: Path, arguments: list[str], called: list[str]) -> None:
    project = make_project(tmp_path / "checkout")
    calls = tmp_path / "calls"
    (project / ".venv" / "bin").mkdir(parents=True)
    _executable(project / ".venv" / "bin" / "python", f'echo "$*" >> {calls}')
    done = _make(project, *arguments, f"PYTHON={_executable(tmp_path / 'python', 'exit 0')}")
    assert done.returncode == 0, done.stderr
    assert calls.read_text().splitlines() == called


def test_make_passes_a_failure_on(tmp_path: Path) -> None:
    project = make_project(tmp_path / "checkout")
    (project / ".venv" / "bin").mkdir(parents=True)
    _executable(project / ".venv" / "bin" / "python", "exit 3")
    done = _make(project, "tinyswallow", f"PYTHON={_executable(tmp_path / 'python', 'exit 0')}")
    assert done.returncode != 0
    assert "Error 3" in done.stderr
