"""The one kind of error that a user can mend: it names what was wanted, what was found and what to do next.

Every command prints it as one line and exits with 2 (`common.cli`). Anything else that is raised is a defect of ours
and keeps its traceback. This module knows no stage and no terminal.
"""


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
