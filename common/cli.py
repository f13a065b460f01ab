"""Shared entry of all commands: parser, help style, errors and exit codes.

A package's `__main__.py` builds its parser with `command` and ends with `run(main)`. UserError, a file that cannot be
read or written and a full disk become `error: wanted ..; got ..; next: ..` on stderr and exit code 2, Ctrl-C becomes
130; any other exception is a defect of this product and keeps its traceback.
"""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Iterable
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

from common.disk import full_disk_error
from common.errors import UserError, require_at_least

Add = Callable[..., Any]
"""`add_argument` of a parser."""

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


class HelpWithDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """The help style of all commands: each default once, and line breaks of a description or epilog kept.

    For an option that is None or False by default, the help text itself says what happens without it, by
    "(default: ..)" or in a sentence.
    """

    def _get_help_string(self, action: argparse.Action) -> str | None:
        explicit = action.default is None or action.default is False or "(default:" in (action.help or "")
        return action.help if explicit else super()._get_help_string(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return "\n".join(indent + line for line in text.splitlines())
        return super()._fill_text(text, width, indent)


class Command(argparse.ArgumentParser):
    """A parser with this help style, also for its verbs, which answer an unknown option with their own usage."""

    def __init__(self, *, formatter_class: Any = HelpWithDefaults, **options: Any) -> None:
        super().__init__(formatter_class=formatter_class, **options)

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]  # the base has overloads
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        arguments = list(sys.argv[1:] if args is None else args)
        known = [name for action in self._actions for name in action.option_strings]
        # Before argparse reports a misspelt required option as missing. The arguments after a verb are its own.
        for argument in takewhile(lambda argument: argument != "--", arguments):
            if self._subparsers is not None and not argument.startswith("-"):
                break
            if argument.startswith("--") and not any(name.startswith(argument.partition("=")[0]) for name in known):
                self._refuse(argument, known)
        parsed, unknown = super().parse_known_args(arguments, namespace)
        if unknown:
            self._refuse(unknown[0], known)
        return parsed, unknown

    def _refuse(self, argument: str, known: list[str]) -> NoReturn:
        name = argument.partition("=")[0]
        nearest = difflib.get_close_matches(name, known, n=1)
        kind = "option" if name.startswith("-") else "argument"
        self.error(f"unknown {kind} {name}" + (f"; the nearest option is {nearest[0]}" if nearest else ""))


def command(module: str, description: str, **options: Any) -> Command:
    """The parser of `python -m MODULE`; `options` are those of `argparse.ArgumentParser`."""
    return Command(prog=f"python -m {module}", description=description, **options)


def require_at_least_one(**counts: int | None) -> None:
    """UserError ("out-of-range") for the first option that is below 1, by its flag: micro_batch_rows is
    --micro-batch-rows. None is skipped."""
    require_at_least(1, next_step="correct it", **{f"--{name.replace('_', '-')}": n for name, n in counts.items()})


def add_input_options(add: Add, *, files: str, tokenizer: str, weights: str, unit: str) -> None:
    """Add the files and sets, --tokenizer, --out, --sources, --benchmarks and --weights.

    `files`, `tokenizer` and `weights` are the help of these; `unit` is the word for rows, in the plural.
    """
    add("files", nargs="+", metavar="FILE_OR_SET", help=files)
    add("--tokenizer", type=Path, required=True, metavar="DIR", help=tokenizer)
    add("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    add("--sources", type=Path, metavar="DIR", help="DIR/ORG/NAME replaces the hub (default: $SOURCES)")
    benchmarks = f"remove {unit} that hold an item of a benchmark in DIR (default: off)"
    add("--benchmarks", type=Path, metavar="DIR", help=benchmarks)
    add("--weights", type=float, nargs="+", metavar="X", help=weights)


def add_packing_options(add: Add, default: Any, *, unit: str) -> None:
    """Add --sequence-tokens, the share of each split, --max-bad-share and --seed, with the fields of `default`."""
    add("--sequence-tokens", type=int, default=default.sequence_tokens, metavar="N", help="tokens of a packed row")
    for split in ("calibration", "validation", "test"):
        share = getattr(default.shares, split)
        add(f"--{split}-share", type=float, default=share, metavar="X", help=f"share of the {unit} for {split}, 0 to 1")
    bad = "share of bad rows allowed, 0 to 1"
    add("--max-bad-share", type=float, default=default.max_bad_share, metavar="X", help=bad)
    add("--seed", type=int, default=default.seed, metavar="N", help="chooses other splits")


def packing_settings(parsed: argparse.Namespace) -> dict[str, Any]:
    """The fields of a config that `add_packing_options` sets, and `benchmarks`."""
    from common.documents import Shares  # most commands need no torch

    shares = Shares(calibration=parsed.calibration_share, validation=parsed.validation_share, test=parsed.test_share)
    fields = {name: getattr(parsed, name) for name in ("benchmarks", "sequence_tokens", "max_bad_share", "seed")}
    return fields | {"shares": shares}


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Call `main` with the command line's arguments and exit with its result (None is 0)."""
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        _end("interrupted; the same command continues from here", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader (`| head`) has closed the pipe. Without this line the interpreter reports it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_BROKEN_PIPE)
    except Exception as error:
        explained = as_user_error(error)
        if explained is None:
            raise
        _end(f"error: {explained}", EXIT_USER_ERROR)
    sys.exit(code or 0)


def as_user_error(error: Exception) -> UserError | None:
    """`error` in a form that a user can act on; None for a defect, whose traceback helps instead."""
    if isinstance(error, UserError):
        return error
    disk_full = full_disk_error(error)
    if disk_full is None and isinstance(error, OSError) and error.filename is not None:
        wanted = f"a file to read or a place to write at {os.fsdecode(error.filename)}"
        got, next_step = error.strerror or type(error).__name__, "check the path and its permissions and start again"
        code = "not-found" if isinstance(error, FileNotFoundError) else "no-access"
        return UserError(code, wanted=wanted, got=got, next_step=next_step)
    return disk_full


def _end(line: str, code: int) -> NoReturn:
    sys.stdout.flush()
    print(line, file=sys.stderr)
    sys.exit(code)
