"""Makes .venv: the packages of pyproject.toml at the versions of constraints.txt, and llama.cpp compiled once.

`make` runs it first; by hand it is `python3 setup_environment.py`. If .venv is complete it returns within a fraction of
a second, without network. A killed set-up leaves no stamp, and the next call starts again; the compiled wheel is kept
separately, under ~/.cache/tinyswallow, for all checkouts.

Standard library only, in the syntax of Python 3.6: a Python too old for the product must hand over or say so.
"""

import argparse
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, NoReturn, Optional, Tuple

SCRIPT = Path(__file__).resolve()
ROOT = SCRIPT.parent
OLDEST, NEWEST = (3, 11), (3, 13)
SUPPORTED = "Python 3.11 to 3.13"
EXTRAS = "data,export,evaluation,figures,dev"
GIB = 2**30

# Measured with `du` after a set-up on x86-64 Linux with torch's CPU build; needed by the compiler while it runs.
VENV_BYTES, BUILD_BYTES = 3 * GIB, 1 * GIB
MINUTES_WITH_COMPILE, MINUTES_WITHOUT = 5, 2  # measured on 2 idle cores

# Built for the native CPU, llama.cpp crashes with quantised models on AMX machines, and a cached wheel may not run on
# another machine: these flags run on every x86-64 of the last ten years. Elsewhere its own default (Metal) is right.
PORTABLE_FLAGS = ["-DGGML_NATIVE=OFF", "-DGGML_AVX2=ON", "-DGGML_FMA=ON", "-DGGML_F16C=ON", "-DGGML_BMI2=ON"]
# Image support and the command-line helpers take more than half of the compile time, and are not used here. The helpers
# have no option (llama-cpp-python forces them on): a file that CMake reads after the project() line turns them off.
SMALL_FLAGS = ["-DLLAVA_BUILD=OFF"]
SMALL_CMAKE = "set(LLAMA_BUILD_COMMON OFF)\n"

OFFLINE_SIGNS = re.compile(
    r"NewConnectionError|Failed to establish a new connection|name resolution|ConnectTimeout|Read timed out"
    r"|ConnectionError|Max retries exceeded|Network is unreachable|ProxyError"
)
# pip ends with one of these where it reached no index, and otherwise where broken connections were made again.
NOTHING_FOUND = re.compile(f"from versions: none|No matching distribution|{OFFLINE_SIGNS.pattern}")
ERROR_SIGNS = re.compile(r"(^|\s)error:|CMake Error|^\w*Error\b", re.IGNORECASE)


class SetupError(Exception):
    """An error that the user can correct: wanted, got and the next step, in one line."""

    def __init__(self, wanted: str, got: str, next_step: str) -> None:
        super().__init__(f"error: wanted {wanted}; got {got}; next: {next_step}")


def say(text: str) -> None:
    """Print one line on stdout and flush it."""
    print(text, flush=True)


def is_supported(version: Tuple[int, ...]) -> bool:
    """Whether the product runs on this (major, minor)."""
    return OLDEST <= version <= NEWEST


def wrong_python(next_step: str) -> SetupError:
    """The error for the Python that runs this."""
    version = ".".join(str(number) for number in sys.version_info[:3])
    return SetupError(SUPPORTED, f"{version} at {sys.executable}", next_step)


def find_supported() -> Optional[str]:
    """The path of a supported Python on PATH, newest first, or None."""
    for name in ("python3.13", "python3.12", "python3.11", "python3"):
        path = shutil.which(name)
        if path is None:
            continue
        # A version manager puts names on PATH that only print an error, so each candidate is run.
        probe = "import sys; print(*sys.version_info[:2])"
        answer = subprocess.run([path, "-c", probe], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        numbers = answer.stdout.split()
        if answer.returncode == 0 and len(numbers) == 2 and is_supported(tuple(int(n) for n in numbers)):
            return path
    return None


def hand_over(arguments: List[str]) -> NoReturn:
    """Starts this file again under a supported Python; SetupError if there is none."""
    found = find_supported()
    if found is None:
        raise wrong_python("install one, or name one with make PYTHON=PATH")
    os.execv(found, [found, str(SCRIPT), *arguments])


def identity() -> str:
    """sha256 of all inputs of .venv: dependencies, versions, this script and the path of .venv."""
    dependencies = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[tool.ruff")[0]
    parts = [dependencies, (ROOT / "constraints.txt").read_text(encoding="utf-8"), str(ROOT)]
    parts.append(SCRIPT.read_text(encoding="utf-8"))
    return hashlib.sha256("\0".join(parts).encode("utf-8")).hexdigest()


def is_complete(version: Optional[Tuple[int, ...]] = None) -> bool:
    """Whether .venv was set up from the present files, and with Python `version` (major, minor) if one is given."""
    try:
        stamp: Dict[str, Any] = json.loads((ROOT / ".venv" / "complete.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not (ROOT / ".venv" / "bin" / "python").exists():
        return False
    return stamp.get("identity") == identity() and version in (None, tuple(stamp.get("python", ())))


def write_stamp() -> None:
    """Marks .venv as complete, atomically."""
    path = ROOT / ".venv" / "complete.json"
    draft = path.with_name("complete.json.partial")
    with open(str(draft), "w", encoding="utf-8") as file:
        json.dump({"identity": identity(), "python": list(sys.version_info[:2])}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(str(draft), str(path))


def llama_pin() -> str:
    """`llama-cpp-python==VERSION` as constraints.txt has it."""
    match = re.search(r"^llama-cpp-python==\S+$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert match, "constraints.txt pins llama-cpp-python"
    return match.group(0)


def llama_flags() -> List[str]:
    """CMake flags for this platform, without any path."""
    portable = sys.platform.startswith("linux") and platform.machine() == "x86_64"
    return (PORTABLE_FLAGS if portable else []) + SMALL_FLAGS


def wheel_folder() -> Path:
    """The folder of the compiled wheel, which is tagged py3-none: one for every Python of this platform."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    built_with = hashlib.sha256(" ".join([*llama_flags(), SMALL_CMAKE]).encode("utf-8")).hexdigest()[:8]
    name = "-".join([sys.platform, platform.machine(), llama_pin().replace("==", "-"), built_with])
    return cache / "tinyswallow" / "wheels" / name


def cached_wheel() -> Optional[Path]:
    """The compiled wheel, or None before the first compile."""
    return next(iter(sorted(wheel_folder().glob("*.whl"))), None)


def check_compiler() -> None:
    """SetupError unless a C and a C++ compiler run."""
    for variable, names in (("CXX", ["c++", "g++", "clang++"]), ("CC", ["cc", "gcc", "clang"])):
        chosen = shlex.split(os.environ.get(variable, ""))[:1] or names
        for name in chosen:
            # macOS has a c++ that only asks for the developer tools: it exists and fails.
            path = shutil.which(name)
            silent = subprocess.DEVNULL
            if path and subprocess.call([path, "--version"], stdout=silent, stderr=silent) == 0:
                break
        else:
            raise SetupError(
                "a C and a C++ compiler for llama.cpp",
                f"none that runs (tried {', '.join(chosen)})",
                "install one (Debian, Ubuntu: apt install g++; macOS: xcode-select --install) and run make again",
            )


def check_disk(needed: Dict[Path, int]) -> None:
    """SetupError if a file system has less free space than these folders need together."""
    totals: Dict[int, Tuple[Path, int]] = {}
    for folder, size in needed.items():
        while not folder.exists():
            folder = folder.parent
        device = os.stat(str(folder)).st_dev
        totals[device] = (folder, totals.get(device, (folder, 0))[1] + size)
    for folder, size in totals.values():
        free = shutil.disk_usage(str(folder)).free
        if free < size:
            wanted = f"{size / GIB:.0f} GiB of free disk at {folder}"
            raise SetupError(wanted, f"{free / GIB:.1f} GiB", "free some and run make again")


def check_machine(compiling: bool) -> None:
    """SetupError for the first thing that this machine lacks."""
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        package = "python{}.{}-venv".format(*sys.version_info[:2])
        raise SetupError(
            "Python's venv module with ensurepip",
            f"a Python without it at {sys.executable}",
            f"install it (Debian, Ubuntu: apt install {package}), or name another Python with make PYTHON=PATH",
        )
    if compiling:
        check_compiler()
    venv = 0 if (ROOT / ".venv" / "complete.json").exists() else VENV_BYTES  # a whole one makes room
    check_disk({ROOT: venv, wheel_folder(): BUILD_BYTES} if compiling else {ROOT: venv})


def explain(doing: str, log: Path, advice: str) -> SetupError:
    """The error in a log, in one line: a full disk, no network, or the tool's own message."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    where = f"(the whole log is {log})"
    if any("No space left on device" in line or "Errno 28" in line for line in lines):
        return SetupError(f"room on the disk for {doing}", f"a full disk {where}", "free some and run make again")
    offline = next((line for line in lines if OFFLINE_SIGNS.search(line)), None)
    if offline and NOTHING_FOUND.search("".join([line for line in lines if ERROR_SIGNS.search(line)][-1:] or lines)):
        advice = "connect this machine, or point pip at a proxy or mirror that it reaches, and run make again"
        return SetupError(f"a network for {doing}", f"none that works: {offline[:160]} {where}", advice)
    said = next((line for line in lines if ERROR_SIGNS.search(line)), lines[-1] if lines else "no output")
    return SetupError(
        f"{doing} to work", f"{said[:200]} {where}", advice or "correct what the log shows and run make again"
    )


def clean_environment(**extra: str) -> Dict[str, str]:
    """The environment for pip, without variables that would send packages elsewhere than into .venv."""
    misleading = {"PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV"}
    kept = {name: value for name, value in os.environ.items() if name not in misleading}
    return dict(kept, PIP_DISABLE_PIP_VERSION_CHECK="1", **extra)


class Job:
    """A command that runs in the background, in a process group of its own, with its output in a log."""

    def __init__(self, doing: str, command: List[str], log: Path, advice: str = "") -> None:
        self.doing, self.log, self.advice = doing, log, advice
        self.started, self.reported = time.monotonic(), False
        with open(str(log), "ab") as output:
            # The lock of the set-up is inherited on purpose (close_fds): if this process is killed, the next set-up
            # waits until its orphans have ended, instead of emptying the folder that they fill.
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=clean_environment(),
                cwd=str(ROOT),
                start_new_session=True,
                close_fds=False,
            )

    def progress(self) -> str:
        """For the terminal: seconds so far and, where ninja counts, its share."""
        counts = re.findall(r"\[(\d+/\d+)\]", self.log.read_bytes()[-4000:].decode("utf-8", "replace"))
        return " ".join([self.doing, *counts[-1:], f"{time.monotonic() - self.started:.0f} s"])

    def stop(self) -> None:
        """Ends it and all processes that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait()


def wait_for(*jobs: Job) -> None:
    """Waits for all; at the first failure stops the others and raises SetupError."""
    try:
        while not all(job.reported for job in jobs):
            time.sleep(0.1)
            for job in jobs:
                if job.process.poll() is None or job.reported:
                    continue
                if job.process.returncode != 0:
                    raise explain(job.doing, job.log, job.advice)
                job.reported = True
                say(f"{job.doing}: {time.monotonic() - job.started:.0f} s")
            if sys.stderr.isatty():
                running = ", ".join(job.progress() for job in jobs if not job.reported)
                print(f"\r\033[K{running}", end="\r", file=sys.stderr, flush=True)
    finally:
        for job in jobs:
            job.stop()


def build_wheel() -> int:
    """Compiles llama-cpp-python into the cache, in its own process, which survives a killed set-up."""
    folder = wheel_folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if cached_wheel():
            return 0
        partial = Path(f"{folder}.partial")
        shutil.rmtree(str(partial), ignore_errors=True)
        (partial / "tmp").mkdir(parents=True)
        (partial / "small.cmake").write_text(SMALL_CMAKE, encoding="utf-8")
        tools = partial / "tools" / "bin"
        flags = [*llama_flags(), f"-DCMAKE_PROJECT_llama_cpp_INCLUDE={shlex.quote(str(partial / 'small.cmake'))}"]
        environment = clean_environment(
            PATH=os.pathsep.join([str(tools), os.environ["PATH"]]),
            CMAKE_ARGS=" ".join(flags),
            CMAKE_GENERATOR="Ninja",
            CMAKE_BUILD_PARALLEL_LEVEL=str(os.cpu_count() or 1),
            TMPDIR=str(partial / "tmp"),
        )
        # The tools get their own folder, so that .venv is the same with and without a compile.
        pip = [sys.executable, "-m", "pip", "--python", str(tools / "python")]
        pins = ["-c", str(ROOT / "constraints.txt")]
        # pip's own cache ignores the flags: a wheel in it may be built for another CPU.
        source = ["--no-deps", "--no-build-isolation", "--no-cache-dir", "--no-binary", "llama-cpp-python", "-v"]
        for command in (
            [sys.executable, "-m", "venv", "--without-pip", str(partial / "tools")],
            [*pip, "install", *pins, "cmake", "ninja", "scikit-build-core"],
            [*pip, "wheel", *source, "-w", str(partial / "wheel"), llama_pin()],
        ):
            status = subprocess.call(command, env=environment)
            if status != 0:
                return status
        shutil.rmtree(str(folder), ignore_errors=True)
        os.rename(str(partial / "wheel"), str(folder))
        shutil.rmtree(str(partial))
    return 0


def set_up() -> None:
    """Makes .venv from nothing. An incomplete one is never completed: pip takes a half-copied package as installed."""
    began, venv, folder = time.monotonic(), ROOT / ".venv", wheel_folder()
    compiling = cached_wheel() is None
    check_machine(compiling)
    first = MINUTES_WITH_COMPILE, "this first time: llama.cpp is compiled and kept in"
    minutes, how = first if compiling else (MINUTES_WITHOUT, "with llama.cpp from")
    say(f"setting up .venv with Python {platform.python_version()}: about {minutes} minutes on 2 cores, {how} {folder}")
    if (venv / "pyvenv.cfg").exists() and not (venv / "install.log").exists():
        raise SetupError("a .venv made by make, or none", f"another one at {venv}", "rename it and run make again")
    if venv.exists():
        say("replacing .venv, which is incomplete or was made from other versions or with another Python")
        shutil.rmtree(str(venv))
    venv.mkdir()
    log, python = venv / "install.log", str(venv / "bin" / "python")
    wait_for(Job("making .venv", [sys.executable, "-m", "venv", str(venv)], log))
    # Python compiles a module at its first import: compiling all of them now would take half a minute.
    install = [python, "-m", "pip", "install", "--no-compile", "-c", str(ROOT / "constraints.txt")]
    jobs = [Job("installing packages", [*install, "-e", f".[{EXTRAS}]"], log)]
    if compiling:
        build = [python, str(SCRIPT), "--build-wheel"]
        jobs.append(Job("compiling llama.cpp", build, venv / "llama.log"))
    wait_for(*jobs)
    wait_for(Job("installing llama.cpp", [*install, str(cached_wheel())], venv / "wheel.log"))
    advice = f"remove {folder}, which another machine may have written, and run make again"
    wait_for(Job("loading llama.cpp", [python, "-c", "import llama_cpp"], venv / "load.log", advice))
    write_stamp()
    say(f"set-up done in {time.monotonic() - began:.0f} s")


def run(arguments: List[str]) -> int:
    """Parses the arguments, and sets .venv up unless it is complete."""
    parser = argparse.ArgumentParser(description="Makes .venv for this checkout.")
    parser.add_argument("--insist", action="store_true", help="use the Python that runs this, and no other")
    parser.add_argument("--build-wheel", action="store_true", help="only compile llama-cpp-python into the cache")
    options = parser.parse_args(arguments)
    running = sys.version_info[:2]
    if options.insist and not is_supported(running):
        raise wrong_python("name another with make PYTHON=PATH")
    version = running if options.insist else None
    if options.build_wheel:
        return build_wheel()
    if is_complete(version):
        return 0
    if not is_supported(running):
        hand_over(arguments)
    with open(str(SCRIPT), "rb") as lock:
        os.set_inheritable(lock.fileno(), True)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another set-up of this checkout is at work: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_complete(version):
            set_up()
    return 0


def main() -> int:
    """The exit status: 0 done, 2 an error that the user can correct, 130 stopped."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        return run(sys.argv[1:])
    except SetupError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        wanted = f"to write {error.filename}" if error.filename else "to write .venv"
        print(SetupError(wanted, error.strerror or str(error), "correct it and run make again"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
