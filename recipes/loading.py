"""From a name, `auto` or a Python file of the user's own to a recipe.

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
from typing import TYPE_CHECKING

from common.errors import UserError, not_found, unknown_name
from common.sources import local_mirror

if TYPE_CHECKING:
    from recipes.recipe import Recipe

RELEASE = "tinyswallow"
KNOWN = {
    "mini": "the embedded default: tinyswallow's code with toy numbers, no download",
    "tinyswallow": "Qwen2.5-32B-Instruct distilled into 1.5B; a large GPU for days, see --plan",
    "rehearsal": "tinyswallow's true size with random weights: memory, files and time, no download",
    "qwen3": "a stronger teacher into Qwen3-1.7B, without Gemma or Llama terms; see --plan",
    "japanese_teacher": "tinyswallow with a teacher that was trained further on Japanese; see --plan",
}
"""What each recipe is, by name; `recipes/<name>.py` has a function of the same name."""


def load(wanted: str, *, say: Callable[[str], None], build_folder: Path = Path("build")) -> "Recipe":
    """The recipe that `wanted` names: one of KNOWN, "auto", or a path that ends in `.py`.

    Args:
        wanted: the name or path.
        say: receives the line that says which recipe `auto` chose, and why.
        build_folder: where it will be built; `auto` counts the free disk there and skips finished artifacts.

    Raises:
        UserError: no such recipe, or a file that does not define one; names the line.
    """
    if wanted.endswith(".py"):
        return _load_file(Path(wanted))
    if wanted == "auto":
        wanted, reason = _automatic(build_folder)
        say(reason)
    if wanted not in KNOWN:
        raise unknown_name("a recipe", repr(wanted), (*KNOWN, "auto", "or a path to a .py file"))
    return getattr(importlib.import_module(f"recipes.{wanted}"), wanted)()


def _automatic(build_folder: Path) -> tuple[str, str]:
    """The name of the recipe that this machine can hold, and why."""
    from recipes.plan.machine import available_here, build_state
    from recipes.preflight import choose

    release = load(RELEASE, say=print)
    state = build_state(release, build_folder, sources=local_mirror(None))
    here = available_here(build_folder, partial_bytes=state.partial_bytes)
    return choose(release, here, state, build_folder=build_folder)


def _load_file(path: Path) -> "Recipe":
    if not path.is_file():
        raise not_found(f"the recipe file {path}")
    from recipes.recipe import Recipe

    source = path.read_bytes()
    module = _new_module(path, source)
    try:
        # Not an import, which would leave bytecode in the folder and reuse it after a quick edit.
        exec(compile(source, str(path), "exec"), module.__dict__)
        if not callable(getattr(module, "recipe", None)):
            raise _invalid(path, "no such function")
        found = module.recipe()
    except UserError:
        raise
    except Exception as error:
        raise _invalid(path, _place_and_message(error, path)) from error
    if not isinstance(found, Recipe):
        raise _invalid(path, f"one that returns {type(found).__name__}")
    return found


def _new_module(path: Path, source: bytes) -> ModuleType:
    # Named by content: a stage that the file defines becomes another stage when the file changes, wherever the file is.
    name = f"recipe_file_{hashlib.sha256(source).hexdigest()[:16]}"
    module = ModuleType(name)
    module.__file__ = str(path.absolute())
    sys.modules[name] = module  # dataclasses and child processes look their module up there
    return module


def _invalid(path: Path, got: str) -> UserError:
    wanted = f"a function recipe() -> Recipe in {path} that runs"
    next_step = "correct the file; `from recipes.mini import mini` and dataclasses.replace are a start"
    return UserError("wrong-format", wanted=wanted, got=got, next_step=next_step)


def _place_and_message(error: Exception, path: Path) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.msg} in line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f" in line {lines[-1]}" if lines else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
