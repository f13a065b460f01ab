"""One number of a recipe and where it comes from: published, or chosen for a reason. Cards and reports print it."""

from dataclasses import dataclass

from common.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One number of the recipe, and where it comes from."""

    what: str
    """What the number is, such as "learning rate of the distillation"."""
    value: str
    """The number with its unit, as a reader would say it."""
    source: str | None = None
    """Where it is published; None = chosen by whoever wrote the recipe."""
    reason: str | None = None
    """Why it was chosen; asked for where there is no source."""

    def __post_init__(self) -> None:
        if not (self.source or self.reason):
            raise UserError(
                wanted=f"a source of {self.what}, or the reason why it was chosen",
                got="neither",
                next_step="Set `source` or `reason` of this choice in the recipe.",
            )
