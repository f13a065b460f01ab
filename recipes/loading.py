"""From what the user names to a recipe: a known name, `auto`, or a Python file of their own.

A recipe file is ordinary Python with a function `recipe() -> Recipe`. Recipes load the stages, and those load torch, so
names are checked first.
"""

import hashlib
import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from common.errors import UserError
from common.sources import local_mirror
from recipes.recipe import Recipe

RELEASE = "tinyswallow"
KNOWN = {
    "mini": "the embedded default: the release's code with toy numbers, no download",
    "tinyswallow": "the release: Qwen2.5-32B-Instruct distilled into 1.5B; a large GPU for days, see --plan",
    "rehearsal": "the release's true size with random weights: memory, files and time, no download",
    "qwen3": "a stronger teacher into Qwen3-1.7B, without Gemma or Llama terms; see --plan",
    "japanese_teacher": "the release with a teacher that was trained further on Japanese; see --plan",
}
"""Recipe name to what it is; `recipes/<name>.py` has a function of the same name."""


def load(wanted: str, *, say: Callable[[str], None], build_folder: Path = Path("build")) -> Recipe:
    """The recipe that `wanted` names: one of KNOWN, "auto", or a path that ends in `.py`.

    Args:
        say: receives the line that says which recipe `auto` chose, and why.
        build_folder: where it will be built; `auto` counts the free disk there, and what is left to be done.

    Raises:
        UserError: no such recipe, or a file that does not define one; names what is wrong in it and where.
    """
    if wanted.endswith(".py"):
        return _load_file(Path(wanted))
    if wanted == "auto":
        wanted, reason = _automatic(build_folder)
        say(reason)
    if wanted not in KNOWN:
        raise UserError(
            "unknown-name",
            wanted=f"a recipe: {', '.join(KNOWN)}, auto, or a path to a .py file",
            got=repr(wanted),
            next_step="name one of these",
        )
    return getattr(importlib.import_module(f"recipes.{wanted}"), wanted)()


def _automatic(build_folder: Path) -> tuple[str, str]:
    """The name of the recipe that this machine can hold, and why."""
    from recipes.plan.machine import available_here, build_state
    from recipes.preflight import choose

    release = load(RELEASE, say=print)
    state = build_state(release, build_folder, sources=local_mirror(None))
    here = available_here(build_folder, partial_bytes=state.partial_bytes)
    return choose(release, here, state, build_folder=build_folder)


def _load_file(path: Path) -> Recipe:
    if not path.is_file():
        raise UserError("not-found", wanted=f"the recipe file {path}", got="no such file", next_step="correct the path")
    source = path.read_bytes()
    module = _new_module(path, source)
    try:
        # Not an import: it would leave bytecode beside the file, and take it for current after a quick edit.
        exec(compile(source, str(path), "exec"), module.__dict__)
        if not callable(getattr(module, "recipe", None)):
            raise _no_recipe(path, "no such function")
        found = module.recipe()
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            "wrong-format",
            wanted=f"Python in {path} that runs",
            got=_where_and_what(error, path),
            next_step="correct the file",
        ) from error
    if not isinstance(found, Recipe):
        raise _no_recipe(path, f"one that returns {type(found).__name__}")
    return found


def _new_module(path: Path, source: bytes) -> ModuleType:
    # Named by content: a stage that the file defines is another stage when the file has changed, wherever it lies.
    name = f"recipe_file_{hashlib.sha256(source).hexdigest()[:16]}"
    module = ModuleType(name)
    module.__file__ = str(path.absolute())
    sys.modules[name] = module  # dataclasses and child processes look their module up there
    return module


def _no_recipe(path: Path, got: str) -> UserError:
    return UserError(
        "wrong-format",
        wanted=f"a function recipe() -> Recipe in {path}",
        got=got,
        next_step="define it; `from recipes.mini import mini` and dataclasses.replace are a start",
    )


def _where_and_what(error: Exception, path: Path) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.msg} in line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f" in line {lines[-1]}" if lines else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
