"""The same recipe in another size: numbers of steps, tokens, rows, documents and items, and nothing else.

    resized(tinyswallow(), {"base.steps": 6, "base.rows_per_step": 2})

What a recipe is (methods, sources, learning rates, encodings) cannot be changed here, so that a small run proves the
large one. To vary a recipe freely, `dataclasses.replace` it.
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
"""Last parts of the dotted names that may be changed; the last three are the shares of documents held out."""


def resized(recipe: Recipe, sizes: Mapping[str, int | float]) -> Recipe:
    """The recipe with some of its sizes changed.

    Args:
        recipe: any recipe.
        sizes: new values by dotted name, such as `base.steps`, `corpus.sources[0].max_files` or `corpus.shares.test`.

    Raises:
        UserError: a name that is no size, or is not in the recipe.
    """
    for name, value in sizes.items():
        if name.rpartition(".")[2] not in SIZES:
            raise UserError(
                wanted=f"the name of a size: one that ends in {', '.join(sorted(SIZES))}",
                got=name,
                next_step="change other fields with dataclasses.replace",
            )
        recipe = _with(recipe, name.split("."), value, name)
    return recipe


def _with(part: Any, names: list[str], value: int | float, whole: str) -> Any:
    name, *rest = names
    field, _, place = name.removesuffix("]").partition("[")
    if not is_dataclass(part) or isinstance(part, type) or field not in {known.name for known in fields(part)}:
        raise UserError(wanted="the name of a field of the recipe", got=whole, next_step="see --show for its names")
    old = getattr(part, field)
    if place:
        items = list(old) if isinstance(old, tuple) else []
        if not place.isdecimal() or int(place) >= len(items) or not rest:
            raise UserError(
                wanted=f"the number of one of the {len(items)} parts of {field}, from 0 on, and a field of it",
                got=whole,
                next_step="see --show for the parts",
            )
        items[int(place)] = _with(items[int(place)], rest, value, whole)
        return replace(part, **{field: tuple(items)})
    return replace(part, **{field: _with(old, rest, value, whole) if rest else value})
