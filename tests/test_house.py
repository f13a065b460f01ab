"""Rules of the code: layout, size budget, docstrings, import layers and circles, and what a training module loads.

`make check` runs this file by itself. Style and types are ruff's and pyright's; this is what they cannot see.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
import warnings
from collections.abc import Iterator, Set
from pathlib import Path

from conftest import QUICK

ROOT = Path(__file__).parents[1]
PACKAGES = ("studies", "bench", "recipes", "distill", "instruct", "export", "eval", "common")
HEAVY = ("llama_cpp", "coremltools", "lm_eval", "datasets", "matplotlib", "triton")

FILE_LINES, FILE_LINES_HARD = 300, 400
FUNCTION_LINES, FUNCTION_LINES_HARD = 50, 80

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _modules() -> list[Path]:
    """Every Python file of the product; tests are exempt from the budget."""
    found = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return [*found, ROOT / "setup_environment.py"]


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _functions(source: str) -> Iterator[tuple[str, int]]:
    """Name and length in lines, decorators aside, of every function, nested ones too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Function):
            assert node.end_lineno is not None
            yield f"{node.lineno} {node.name}", node.end_lineno - node.lineno + 1


def _over_budget(lengths: dict[str, int], wished: int, hard: int) -> dict[str, int]:
    """What is over the hard limit; what is over the wish is only warned about."""
    for name, lines in sorted(lengths.items()):
        if wished < lines <= hard:
            warnings.warn(f"{name}: {lines} lines, wished are at most {wished}", stacklevel=2)
    return {name: lines for name, lines in lengths.items() if lines > hard}


def test_files_keep_the_size_budget() -> None:
    lengths = {_relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in _modules()}
    assert _over_budget(lengths, FILE_LINES, FILE_LINES_HARD) == {}, "a module over the limit becomes a folder"


def test_functions_keep_the_size_budget() -> None:
    lengths = {
        f"{_relative(path)}:{name}": lines
        for path in _modules()
        for name, lines in _functions(path.read_text(encoding="utf-8"))
    }
    assert _over_budget(lengths, FUNCTION_LINES, FUNCTION_LINES_HARD) == {}


def test_every_module_opens_with_a_docstring() -> None:
    everything = [*_modules(), *sorted((ROOT / "examples").glob("*.py")), *sorted((ROOT / "tests").glob("*.py"))]
    silent = [_relative(path) for path in everything if not ast.get_docstring(ast.parse(path.read_text("utf-8")))]
    assert silent == []


def test_nothing_is_left_undone() -> None:
    unfinished = re.compile(r"\bTODO\b|\bFIXME\b|\bXXX\b|\bNotImplementedError\b|\bbreakpoint\(|\bpdb\b")
    found = [
        f"{_relative(path)}:{number}: {line.strip()}"
        for path in _modules()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if unfinished.search(line)
    ]
    assert found == []


def test_comments_are_ascii() -> None:
    found = [
        f"{_relative(path)}:{token.start[0]}: {token.string}"
        for path in _modules()
        for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
        if token.type == tokenize.COMMENT and not token.string.isascii()
    ]
    assert found == []


def test_packages_are_listed_and_every_folder_of_modules_is_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    listed = project["setuptools"]["packages"]["find"]["include"]
    assert sorted(listed) == sorted(f"{package}*" for package in PACKAGES)
    assert sorted(project["importlinter"]["root_packages"]) == sorted(PACKAGES)
    assert set(PACKAGES) <= set(project["pyright"]["include"])
    ignored = {"tests", "examples", "build", "dist"}
    folders = {path.parent.name for path in ROOT.glob("[!.]*/*.py")} - ignored
    assert folders == set(PACKAGES)
    # lm-eval loads the functions beside its task files by path, not as a package.
    inside = {path.parent for path in _modules() if path.parent != ROOT and not any(path.parent.glob("*.yaml"))}
    homeless = [_relative(folder) for folder in sorted(inside) if not (folder / "__init__.py").exists()]
    assert homeless == [], "no __init__.py: import-linter and setuptools would pass these folders over"


def test_tests_are_flat_and_named_after_what_they_test() -> None:
    tests = ROOT / "tests"
    assert not (tests / "__init__.py").exists(), "a package named tests could shadow the product's own"
    assert [_relative(path) for path in tests.rglob("test_*.py") if path.parent != tests] == []
    subjects = "|".join([*PACKAGES, "house", "setup", "docs"])
    astray = [path.name for path in tests.glob("test_*.py") if not re.match(rf"test_({subjects})(_|\.py$)", path.name)]
    assert astray == []


def test_the_quick_tests_touch_every_package_and_are_there() -> None:
    found = {path.name: path for path in (ROOT / "tests").glob("test_*.py")}
    assert [name for name in QUICK if name not in found] == [], "renamed or gone: tests/conftest.py lists them"
    gone: list[str] = []
    for name, tests in QUICK.items():
        body = ast.parse(found[name].read_text(encoding="utf-8")).body
        defined = {node.name for node in body if isinstance(node, Function)}
        gone += [f"{name}: {test}" for test in tests if test not in defined]
    assert gone == []
    touched = {re.split(r"[_.]", name)[1] for name in QUICK}
    assert set(PACKAGES) <= touched


def _imported(path: Path) -> Iterator[str]:
    """Names of the modules that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_no_test_file_imports_another() -> None:
    paths = sorted((ROOT / "tests").glob("*.py"))
    found = {path.name: [name for name in _imported(path) if name.startswith("test_")] for path in paths}
    assert {name: names for name, names in found.items() if names} == {}, "what tests share goes to a *_tiny.py"


def test_import_layers_are_kept() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def _imports(path: Path, known: Set[str]) -> set[str]:
    """The product's modules that a file imports, in functions and under TYPE_CHECKING too.

    `from package import name` is the submodule `name` if there is one, else the package's own `__init__`.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: a relative import"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & known
            found |= submodules | ({node.module} if len(submodules) < len(node.names) else set())
    return found & known


def _circle(imports: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a ring, the first one again at the end; [] if there is none."""
    finished: set[str] = set()

    def search(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return [*trail[trail.index(module) :], module]
        for other in sorted(imports[module] - finished):
            if circle := search(other, [*trail, module]):
                return circle
        finished.add(module)
        return []

    return next((circle for module in sorted(imports) if (circle := search(module, []))), [])


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = {_dotted(path): path for path in _modules()}
    circle = _circle({module: _imports(path, modules.keys()) - {module} for module, path in modules.items()})
    assert circle == [], " imports ".join(circle)


def test_a_circle_is_found_also_behind_a_package_and_for_types_alone(tmp_path: Path) -> None:
    files = {
        "a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p import deep",
        "p": "import json\nfrom p.deep import x",
        "p.deep": "def f() -> None:\n    from p.other import thing, more",
        "p.other": "x = 1",
    }
    imports: dict[str, set[str]] = {}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        imports[name] = _imports(tmp_path / name, files.keys())
    assert imports == {"a": {"p.deep"}, "p": {"p.deep"}, "p.deep": {"p.other"}, "p.other": set()}
    assert _circle(imports) == []
    (tmp_path / "p.other").write_text("from p import x")
    imports["p.other"] = _imports(tmp_path / "p.other", files.keys())
    assert _circle(imports) == ["p.deep", "p.other", "p", "p.deep"]


def _loaded_by(modules: list[str]) -> set[str]:
    """Names in sys.modules of a fresh interpreter that has imported these."""
    code = f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return set(done.stdout.split())


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_training_loads_where_the_runtimes_are_absent() -> None:
    paths = [path for package in ("common", "distill", "instruct") for path in sorted((ROOT / package).rglob("*.py"))]
    # The Triton kernel is imported where it is asked for, and Triton comes with torch's CUDA builds only.
    modules = [_dotted(path) for path in paths if path.name not in ("__main__.py", "taid_kernel.py")]
    assert _loaded_by(modules) & set(HEAVY) == set()


def test_the_pipeline_loads_its_heavy_libraries_late() -> None:
    modules = [package for package in PACKAGES if (ROOT / package / "__init__.py").exists()]
    modules += [f"{package}.__main__" for package in PACKAGES if (ROOT / package / "__main__.py").exists()]
    assert _loaded_by(modules) & set(HEAVY) == set()


def test_every_target_of_the_makefile_is_phony() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w.-]+):(?!=)", makefile, re.MULTILINE)) - {".PHONY"}
    phony = set(re.findall(r"^\.PHONY:(.*)$", makefile, re.MULTILINE)[0].split())
    assert targets == phony


def test_files_and_targets_that_contributing_names_are_there() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w./]+/[\w.]+\.\w+)`|\]\(([\w./-]+)\)", page))
    paths = {first or second for first, second in named}
    assert "recipes/recipe.py" in paths and [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert [target for target in re.findall(r"`make ([\w-]+)`", page) if f"\n{target}:" not in makefile] == []


def test_constraints_pin_every_direct_dependency_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", pin)] == []
    names = [pin.split("==")[0] for pin in pins]
    assert sorted(set(names)) == sorted(names)
    direct = {re.split(r"[^A-Za-z0-9_-]", one)[0].lower().replace("_", "-") for one in wanted}
    assert direct <= set(names)


def test_the_readme_shows_the_pipeline_as_it_is() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (excerpt,) = re.findall(r"```text\n(.*?)```", readme, re.DOTALL)
    code = (ROOT / "recipes" / "recipe.py").read_text(encoding="utf-8").splitlines()
    places = [code.index(line) for line in excerpt.splitlines()]
    assert len(places) >= 5 and places == sorted(places)


def test_every_place_in_the_readme_exists() -> None:
    table = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    for line in table:
        folders = re.findall(r"`(\w+)/`", line.split("|")[1])
        assert folders and all((ROOT / folder).is_dir() for folder in folders), line
        for name in re.findall(r"`([\w./]+\.(?:py|toml)|\w+/)`", line.split("|")[2]):
            assert any((ROOT / folder / name).exists() for folder in folders), f"{name} in {folders}"
