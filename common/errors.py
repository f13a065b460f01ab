"""The one kind of error that a user can mend: it names what was wanted, what was found and what to do next.

Every command prints it as one line and exits with 2 (`common.cli`). Anything else that is raised is a defect of ours
and keeps its traceback. This module knows no stage and no terminal.
"""

from functools import partial
from typing import Any


class UserError(ValueError):
    """A mistake in the input, the recipe or the machine that the user can mend.

    Args:
        wanted: what the code needed, with units.
        got: what it found, naming file and line where there is one.
        next_step: one imperative sentence.
    """

    def __init__(self, *, wanted: str, got: str, next_step: str) -> None:
        self.wanted, self.got, self.next_step = wanted, got, next_step
        super().__init__(f"wanted {wanted}; got {got}; next: {next_step}")

    def __reduce__(self) -> Any:
        # It comes out of worker processes too, and pickle would call the class with the whole sentence alone.
        return partial(type(self), wanted=self.wanted, got=self.got, next_step=self.next_step), ()


class InputError(UserError):
    """What a stage was given, or its settings, cannot give a result.

    Mending it gives the stage another key, so that no later start can use what the refused one left: the store removes
    it. A mistake outside the key (no network, a passphrase, a full disk) is a plain UserError.
    """
