"""A product in miniature for the tests of setup_environment.py: its own package index on disk, no network, no compiler.

`make_project` writes a checkout whose pyproject.toml builds with a backend of a few lines, and `make_index` a folder
with wheels of the compile tools and a source package of llama-cpp-python whose "compile" only writes down CMAKE_ARGS.
"""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LLAMA_PIN = "llama-cpp-python==0.3.36"
TOOLS = ("cmake", "ninja", "scikit-build-core")

BACKEND = """
import os, pathlib, time, zipfile

NAME, VERSION, MODULE, NEEDS = {name!r}, {version!r}, {module!r}, {needs!r}
INFO = NAME + "-" + VERSION + ".dist-info"
METADATA = "Metadata-Version: 2.1\\nName: " + NAME + "\\nVersion: " + VERSION + "\\n" + NEEDS

def get_requires_for_build_wheel(config_settings=None):
    return []

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = pathlib.Path(folder, INFO)
    info.mkdir()
    info.joinpath("METADATA").write_text(METADATA)
    return INFO

def build_wheel(folder, config_settings=None, metadata_directory=None):
    if MODULE:
        time.sleep(float(os.environ.get("MINIATURE_COMPILE_SECONDS", "0")))
    name = NAME + "-" + VERSION + "-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        wheel.writestr(INFO + "/METADATA", METADATA)
        wheel.writestr(INFO + "/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(INFO + "/RECORD", "")
        if MODULE:
            wheel.writestr(MODULE, "CMAKE_ARGS = " + repr(os.environ.get("CMAKE_ARGS")))
    return name

get_requires_for_build_editable = get_requires_for_build_wheel
prepare_metadata_for_build_editable = prepare_metadata_for_build_wheel
build_editable = build_wheel
"""
BUILD_SYSTEM = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def _wheel(folder: Path, name: str) -> None:
    stem = f"{name.replace('-', '_')}-1.0"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")


def make_index(folder: Path) -> Path:
    """Everything that the miniature's set-up asks an index for."""
    folder.mkdir()
    for name in TOOLS:
        _wheel(folder, name)
    stem = "llama_cpp_python-0.3.36"
    files = {
        "PKG-INFO": "Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: 0.3.36\n",
        "pyproject.toml": BUILD_SYSTEM,
        "backend.py": BACKEND.format(
            name="llama_cpp_python", version="0.3.36", module="llama_cpp/__init__.py", needs=""
        ),
    }
    with tarfile.open(folder / f"{stem}.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"{stem}/{name}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return folder


def make_project(folder: Path, *, dependency: str = "") -> Path:
    """A checkout with the real set-up script and Makefile, and nothing to install but itself."""
    folder.mkdir()
    shutil.copy(ROOT / "setup_environment.py", folder)
    shutil.copy(ROOT / "Makefile", folder)
    extras = "[project.optional-dependencies]\nexport = []\nevaluation = []\nfigures = []\ndev = []\n"
    project = '[project]\nname = "miniature"\nversion = "1.0"\ndependencies = []\n'
    (folder / "pyproject.toml").write_text(f"{BUILD_SYSTEM}\n{project}\n{extras}\n[tool.ruff]\n")
    needs = f"Requires-Dist: {dependency}\n" if dependency else ""
    (folder / "backend.py").write_text(BACKEND.format(name="miniature", version="1.0", module="", needs=needs))
    (folder / "constraints.txt").write_text("\n".join([LLAMA_PIN, *(f"{name}==1.0" for name in TOOLS)]) + "\n")
    return folder


def environment(index: Path, cache: Path, **extra: str) -> dict[str, str]:
    """No index but `index`, no cache but `cache`, and none of pip's settings of this machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "CMAKE_", "MAKE"))}
    return (
        kept
        | {
            "XDG_CACHE_HOME": str(cache),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(index),
        }
        | extra
    )


def start(project: Path, env: dict[str, str]) -> subprocess.Popen[str]:
    """The set-up of `project`, running."""
    command = [sys.executable, str(project / "setup_environment.py")]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err
