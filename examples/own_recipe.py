"""A recipe of one's own: `mini` with another distillation method, trained for longer, and only one GGUF file.

    .venv/bin/python -m recipes examples/own_recipe.py --plan
    .venv/bin/python -m recipes examples/own_recipe.py

Stages that a build of `mini` has left in build/ are found and not built again; only `base` and what depends on it run.
docs/your-own-model.md has a recipe that reads files of one's own.
"""

from dataclasses import replace

from recipes.mini import mini
from recipes.recipe import Recipe


def recipe() -> Recipe:
    """The function that `python -m recipes FILE.py` calls."""
    start = mini()
    assert start.base is not None
    return replace(
        start,
        name="jensen-shannon",
        base=replace(start.base, method="jensen_shannon", settings=(("beta", 0.3),), steps=600),
        gguf=replace(start.gguf, stem="My-mini-Chat", encodings=("Q8_0",)),
        coreml=replace(start.coreml, stem="My-mini-Chat"),
        report=replace(start.report, recipe="jensen-shannon"),
    )
