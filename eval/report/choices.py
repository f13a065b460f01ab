"""What a report states about its sources: the recipe's numbers with where they come from, the benchmarks' terms.

A number of a recipe is published for the model that is reproduced, or chosen here. A number from the code or the script
of another model counts as chosen, with that code as its source. A text does not follow a number that a user changes in
a recipe, so a choice names the config fields that it describes, and `differences` compares them with the manifests.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from common.errors import UserError

Scalar = int | float | str


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One number of the recipe, and where it comes from."""

    what: str
    """What the number is, such as "peak learning rate of the distillation"."""
    value: str
    """The number with its unit, as text."""
    published: bool = False
    """Whether its publishers state it for the model that is reproduced; otherwise it was chosen here."""
    source: str | None = None
    """Where it is published; for a chosen number, what it was taken from, such as another model's script."""
    reason: str | None = None
    """Why it was chosen."""
    fields: tuple[tuple[str, Scalar], ...] = ()
    """Fields that `value` describes, as `artifact.field`, with their values: ("base.steps", 8000). The value of a list
    is its length."""

    def __post_init__(self) -> None:
        if self.published and not self.source:
            raise UserError(
                "contradiction",
                wanted=f"a source of {self.what}, which is called published",
                got="none",
                next_step="set `source` of this choice in the recipe, or leave out `published`",
            )
        if not self.published and not self.reason:
            raise UserError(
                "contradiction",
                wanted=f"the reason why {self.what} was chosen, or published=True with a source",
                got="a source alone" if self.source else "neither",
                next_step="set `reason` of this choice in the recipe, with or without a `source`",
            )


def revised(choices: Iterable[Choice], *changed: Choice, without: Sequence[str] = ()) -> tuple[Choice, ...]:
    """The choices of a recipe that derives from another: some replaced by their `what`, some left out.

    Raises:
        UserError: no choice has that name, so that nothing would be replaced.
    """
    choices, new = tuple(choices), {choice.what: choice for choice in changed}
    known = {choice.what for choice in choices}
    for what in (*new, *without):
        if what not in known:
            raise UserError(
                "unknown-name",
                wanted=f"the name of a choice out of {', '.join(sorted(known))}",
                got=what,
                next_step="correct its `what` in the recipe",
            )
    return tuple(new.get(choice.what, choice) for choice in choices if choice.what not in without)


def differences(choice: Choice, manifests: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Scalar]]:
    """Where a build differs from the choice: {field, says, built}. A field that no manifest holds is left out.

    Args:
        choice: with its `fields`.
        manifests: by artifact.
    """
    found: list[dict[str, Scalar]] = []
    for field, said in choice.fields:
        artifact, _, name = field.partition(".")
        built = _value(manifests.get(artifact, {}).get("config"), name)
        if built is not None and built != said:
            found.append({"field": field, "says": said, "built": built})
    return found


def _value(config: Any, name: str) -> Scalar | None:
    """A number or a word of a manifest's config by its dotted name, None for anything else, such as a path."""
    for part in re.split(r"\.|\[(\d+)\]\.?", name):
        if not part:
            continue
        if isinstance(config, list):
            items = cast(list[Any], config)
            config = items[int(part)] if part.isdigit() and int(part) < len(items) else None
        else:
            config = cast(Mapping[str, Any], config).get(part) if isinstance(config, Mapping) else None
    if isinstance(config, list):
        return len(cast(list[Any], config))
    return config if isinstance(config, Scalar) else None
