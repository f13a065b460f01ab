"""The one kind of error that a user can correct: a code, what was wanted, what was found and what to do next.

Every command prints it as one line and exits with 2 (`common.cli`). Any other exception is a defect of this product
and keeps its traceback. Independent of stages and terminals.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal

Code = Literal[
    "not-found",  # a file, a folder or a name on the hub is absent
    "unknown-name",  # a name that is none of the known choices
    "out-of-range",  # a number outside its range
    "contradiction",  # two settings, or two inputs, exclude each other
    "wrong-format",  # a file of another kind, or content that cannot be parsed
    "damaged",  # truncated or changed content: a checksum, a size or an index differs
    "mismatch",  # two artifacts do not fit together: tokenizer, shapes, positions
    "empty",  # nothing usable is left, or nothing was given
    "not-finite",  # a loss, a gradient, a logit or a setting is infinite or NaN
    "no-space",  # the disk is too small
    "no-memory",  # main memory or GPU memory is too small
    "no-network",  # a server does not answer
    "no-access",  # terms, a token or a passphrase is missing
    "not-installed",  # a program or a library is missing
    "unsupported",  # a valid input that this product does not handle
    "exists",  # the output place holds something else
    "failed",  # a child process or a run ended without its result
    "needs-consent",  # an expensive or public action that nobody confirmed
    "several",  # more than one of these; the fields list them
]
"""What kind of error it is. Tests and callers rely on the code and the fields; the wording of the fields may change."""


class UserError(ValueError):
    """A mistake in the input, the recipe or the machine that the user can correct.

    Args:
        code: the kind of error, one of `Code`.
        wanted: what the code needed, with units.
        got: what it found, naming file and line where there is one.
        next_step: one imperative clause.
    """

    def __init__(self, code: Code, /, *, wanted: str, got: str, next_step: str) -> None:
        self.code: Code = code
        self.wanted, self.got, self.next_step = wanted, got, next_step
        super().__init__(f"wanted {wanted}; got {got}; next: {next_step}")

    def __reduce__(self) -> Any:
        # Worker processes send it by pickle, which would call the class with the whole sentence alone.
        return partial(type(self), self.code, wanted=self.wanted, got=self.got, next_step=self.next_step), ()


class InputError(UserError):
    """The input or the settings of a stage cannot give a result.

    Correcting them gives the stage another key, so no later start can use what the refused one left: the store removes
    it. A mistake outside the key (no network, a passphrase, a full disk) is a plain UserError.
    """


def require_at_least(least: float, *, next_step: str = "correct the setting", **values: float | None) -> None:
    """Raise UserError ("out-of-range") for the first of the named values that is below `least`; None is skipped."""
    require_between(least, math.inf, next_step=next_step, **values)


def require_between(low: float, high: float, *, next_step: str = "correct the setting", **values: float | None) -> None:
    """Raise UserError ("out-of-range") for the first of the named values outside `low` to `high`; None is skipped."""
    bounds = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
    _require(lambda value: low <= value <= high, bounds, next_step, values)


def require_above(bound: float, *, next_step: str = "correct the setting", **values: float | None) -> None:
    """Raise UserError ("out-of-range") for the first of the named values that is not above `bound`; None is skipped."""
    _require(lambda value: value > bound, f"above {bound:g}", next_step, values)


def require_below(bound: float, *, next_step: str = "correct the setting", **values: float | None) -> None:
    """Raise UserError ("out-of-range") for the first of the named values that is not below `bound`; None is skipped."""
    _require(lambda value: value < bound, f"below {bound:g}", next_step, values)


def _require(holds: Callable[[float], bool], bounds: str, next_step: str, values: Mapping[str, float | None]) -> None:
    for name, value in values.items():
        if value is not None and not holds(value):
            raise UserError("out-of-range", wanted=f"{name} {bounds}", got=f"{value:g}", next_step=next_step)


def unknown_name(what: str, got: object, known: Iterable[str]) -> UserError:
    """The error ("unknown-name") for a name that is none of the `known` ones."""
    return UserError("unknown-name", wanted=f"{what}: {', '.join(known)}", got=str(got), next_step="name one of these")


def not_found(what: str, got: str = "no such file", *, next_step: str = "correct the path") -> UserError:
    """The error ("not-found") for a file or a folder that is absent; `what` names it with its path."""
    return UserError("not-found", wanted=what, got=got, next_step=next_step)


def damaged(what: str, got: object, *, next_step: str = "copy or download the file again") -> UserError:
    """The error ("damaged") for a file that is cut short or changed; `what` names it with its path."""
    return UserError("damaged", wanted=what, got=str(got), next_step=next_step)
