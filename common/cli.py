"""How every command explains its options, and how it ends: its exit code and, where the user can mend something, one
clear line.

A package's `__main__.py` closes with `run(main)`. UserError, a file that cannot be read or written and a full disk
become `error: wanted ..; got ..; next: ..` on stderr and exit 2, Ctrl-C exits 130; anything else is a defect of ours
and keeps its traceback. It knows no command and no argument.
"""

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from common.disk import full_disk_error
from common.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


class HelpWithDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to an option's help where it says something.

    That an option is None or a switch is off does not: there the words tell, by "(default: ..)" or in a sentence, what
    happens without it.
    """

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_it = action.default is None or action.default is False or "(default:" in (action.help or "")
        return action.help if says_it else super()._get_help_string(action)


def require_at_least_one(**counts: int) -> None:
    """UserError for an option, by name, that is below 1."""
    for name, count in counts.items():
        if count < 1:
            raise UserError(wanted=f"--{name.replace('_', '-')} of at least 1", got=str(count), next_step="mend it")


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Call `main` with the command line's arguments and exit with what it returns (None is 0)."""
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        _end("interrupted; the same command goes on from here", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader (`| head`) has what it wanted. Without this, the interpreter complains once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_BROKEN_PIPE)
    except Exception as error:
        explained = as_user_error(error)
        if explained is None:
            raise
        _end(f"error: {explained}", EXIT_USER_ERROR)
    sys.exit(code or 0)


def as_user_error(error: Exception) -> UserError | None:
    """`error` in the form that a user can act on, or None where only we can: then the traceback is what helps."""
    if isinstance(error, UserError):
        return error
    disk_full = full_disk_error(error)
    if disk_full is not None:
        return disk_full
    if isinstance(error, OSError) and error.filename is not None:
        return UserError(
            wanted=f"a file to read or a place to write at {os.fsdecode(error.filename)}",
            got=error.strerror or type(error).__name__,
            next_step="check the path and its permissions and start again",
        )
    return None


def _end(line: str, code: int) -> NoReturn:
    sys.stdout.flush()
    print(line, file=sys.stderr)
    sys.exit(code)
