"""A recipe in another size: other numbers of steps, tokens, rows, documents and items, and no other change.

    resized(tinyswallow(), {"base.steps": 6, "base.rows_per_step": 2})

Methods, sources, learning rates and encodings cannot be changed here, so a small run exercises the code of the large
one. `dataclasses.replace` varies a recipe freely.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from common.errors import UserError
from recipes.recipe import Recipe

SIZES = frozenset(
    {
        *("steps", "validate_every", "checkpoint_every"),
        *("corpus_tokens", "replay_tokens", "fidelity_tokens", "context_tokens", "sequence_tokens", "chunk_tokens"),
        *("rows_per_step", "replay_rows_per_step", "micro_batch_rows", "sample_max_tokens"),
        *("max_files", "items_per_benchmark", "items_per_shape", "items_per_shape_other", "sample_questions"),
        *("calibration", "validation", "test"),
    }
)
"""Fields that may be changed; the last three are the shares of held-out documents."""


def resized(recipe: Recipe, sizes: Mapping[str, int | float]) -> Recipe:
    """The recipe with new `sizes` by dotted name: `base.steps`, `corpus.sources[0].max_files`, `corpus.shares.test`.

    Raises:
        UserError: a name that is no size, or is not in the recipe.
    """
    for name, value in sizes.items():
        if name.rpartition(".")[2] not in SIZES:
            raise _unknown(f"the name of a size: one that ends in {', '.join(sorted(SIZES))}", name)
        recipe = _with(recipe, name.split("."), value, name)
    return recipe


def _with(part: Any, names: list[str], value: int | float, whole: str) -> Any:
    name, *rest = names
    field, _, place = name.removesuffix("]").partition("[")
    if not is_dataclass(part) or isinstance(part, type) or field not in {known.name for known in fields(part)}:
        raise _unknown("the name of a field of the recipe", whole)
    old = getattr(part, field)
    if place:
        items = list(old) if isinstance(old, tuple) else []
        if not place.isdecimal() or int(place) >= len(items) or not rest:
            raise _unknown(f"a field of one of the {len(items)} parts of {field}, numbered from 0", whole)
        items[int(place)] = _with(items[int(place)], rest, value, whole)
        return replace(part, **{field: tuple(items)})
    return replace(part, **{field: _with(old, rest, value, whole) if rest else value})


def _unknown(wanted: str, got: str) -> UserError:
    next_step = "`python -m recipes --show` prints the names; dataclasses.replace changes other fields"
    return UserError("unknown-name", wanted=wanted, got=got, next_step=next_step)
