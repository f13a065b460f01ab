"""A recipe's numbers as cards and reports print them: published for the model that is reproduced, or chosen here.

A number that stands in the code or the script of another model is chosen, with that code as its source: whoever wrote
the recipe decided that it should hold here too. A text does not follow a number that somebody changes in a recipe, so a
choice names the fields that it tells of, and `differences` holds them against the manifests of a build.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    """The number with its unit, as a reader would say it."""
    published: bool = False
    """Whether its publishers state it for the very model that is reproduced; else it was chosen here."""
    source: str | None = None
    """Where it is published; of a chosen number, what it was taken from, such as another model's script."""
    reason: str | None = None
    """Why it was chosen."""
    fields: tuple[tuple[str, Scalar], ...] = ()
    """Fields that `value` tells of, as `artifact.field`, with their values: ("base.steps", 8000). A list counts by its
    length."""

    def __post_init__(self) -> None:
        if self.published and not self.source:
            raise UserError(
                wanted=f"a source of {self.what}, which is called published",
                got="none",
                next_step="Set `source` of this choice in the recipe, or leave out `published`.",
            )
        if not self.published and not self.reason:
            raise UserError(
                wanted=f"the reason why {self.what} was chosen, or published=True with a source",
                got="a source alone" if self.source else "neither",
                next_step="Set `reason` of this choice in the recipe; a `source` may stand beside it.",
            )


def revised(choices: Iterable[Choice], *changed: Choice, without: Sequence[str] = ()) -> tuple[Choice, ...]:
    """The choices of a recipe that was made from another one's: some replaced by their `what`, some left out.

    Raises:
        UserError: there is no choice of that name, so that nothing would be replaced.
    """
    choices, new = tuple(choices), {choice.what: choice for choice in changed}
    known = {choice.what for choice in choices}
    for what in (*new, *without):
        if what not in known:
            raise UserError(
                wanted=f"the name of a choice out of {', '.join(sorted(known))}",
                got=what,
                next_step="Correct its `what` in the recipe.",
            )
    return tuple(new.get(choice.what, choice) for choice in choices if choice.what not in without)


def differences(choice: Choice, manifests: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Scalar]]:
    """What a build has other than the choice says: {field, says, built}. A field that no manifest holds is left out.

    Args:
        choice: with its `fields`.
        manifests: by artifact.
    """
    return list(_differences(choice, manifests))


def _differences(choice: Choice, manifests: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Scalar]]:
    for field, said in choice.fields:
        artifact, _, name = field.partition(".")
        built = _found(manifests.get(artifact, {}).get("config"), name)
        if built is not None and built != said:
            yield {"field": field, "says": said, "built": built}


def _found(config: Any, name: str) -> Scalar | None:
    """A number or a word of a manifest's config by its dotted name; a path, for one, is neither."""
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
