"""The help of every command and verb, and one error line a command, as tests/golden/ keeps them.

`.venv/bin/python tests/golden_tiny.py` writes the files again; read the difference before it is committed.
"""

import argparse
import contextlib
import importlib
import io
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from common.cli import run

GOLDEN = Path(__file__).parent / "golden"
MISTAKES = {
    "recipes": "no-such-recipe",
    "recipes.inspect": "missing.py",
    "distill": "train --student missing --corpus missing --out new",
    "instruct": "conversations missing.jsonl --tokenizer missing --out new",
    "export": "gguf missing --out new",
    "eval": "phones missing.gguf --out new.json",
    "eval.chat": "missing.gguf",
    "eval.report": "missing.json new",
    "bench": "loss --tokens 0",
    "studies.compare": "--seeds 0",
    "studies.figures": "--study damaged.json",
}
"""Commands, and the arguments of a mistake that each of them has to answer with one line."""
_SCREEN = {"COLUMNS": "100", "NO_COLOR": "1"}


class _Parser(Exception):  # it carries a result and is no error
    """Ends a command where it has made its parser."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def page(module: str) -> str:
    """What a golden file holds: the help of a command and of its verbs, and the answer to its mistake."""
    name = module if hasattr(importlib.import_module(module), "main") else f"{module}.__main__"
    main = importlib.import_module(name).main
    with mock.patch.dict(os.environ, _SCREEN):
        os.environ.pop("SOURCES", None)
        parts = [f"$ {parser.prog} -h\n{parser.format_help()}" for parser in _with_verbs(_parser_of(main))]
        parts.append(f"$ python -m {module} {MISTAKES[module]}\n{_answer(main, MISTAKES[module])}")
    return "\n".join(parts)


def _parser_of(main: Callable[[list[str]], Any]) -> argparse.ArgumentParser:
    def stop(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        raise _Parser(parser)

    with mock.patch.object(argparse.ArgumentParser, "parse_args", stop):
        try:
            main([])
        except _Parser as made:
            return made.parser
    raise AssertionError(f"{main} parses nothing")


def _with_verbs(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                yield from _with_verbs(verb)


def _answer(main: Callable[[list[str]], Any], arguments: str) -> str:
    """The lines on stderr of a command that ends with exit code 2, run in a folder with one damaged file."""
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("damaged.json").write_text("{", encoding="utf-8")
        with mock.patch.object(sys, "argv", ["", *shlex.split(arguments)]), contextlib.redirect_stderr(said):
            try:
                run(main)
            except SystemExit as ended:
                assert ended.code == 2, ended.code
    return said.getvalue()


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for command in MISTAKES:
        (GOLDEN / f"{command}.txt").write_text(page(command), encoding="utf-8")
