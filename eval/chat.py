"""Talk to a GGUF file in the terminal: `python -m eval.chat [MODEL.gguf]`, or `make chat`.

`/reset` forgets the conversation, `/exit` or Ctrl-D ends; with piped input each line is one question and only the
answers are printed. A conversation that outgrows the model's context loses its oldest turns. How the file answers is
`eval.chat_speaker`'s business; nothing is measured here.
"""

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from common.cli import require_at_least_one, run
from common.errors import UserError
from eval.chat_speaker import ChatOptions, Message, Speaker, TooLong

ENCODING = "Q4_K_M"
"""Which of a recipe's files is taken where none is named: the one meant for phones."""
HELP = "/reset forgets the conversation, /exit (or Ctrl-D) ends it"


def main(arguments: list[str]) -> None:
    """Parses `arguments` and talks until the input ends."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.chat",
        description=f"Talk to a GGUF file. {HELP}.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "model",
        nargs="?",
        type=Path,
        metavar="MODEL.gguf",
        help=f"the file (default: the one dist/*/*-{ENCODING}.gguf)",
    )
    parser.add_argument("--system", metavar="TEXT", help="a system prompt")
    parser.add_argument("--context", type=int, default=4096, metavar="N", help="room for the conversation, in tokens")
    parser.add_argument("--max-tokens", type=int, default=512, metavar="N", help="longest answer, in tokens")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="X", help="0 always takes the likeliest token; 0.7 varies"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="threads to compute with")
    parsed = parser.parse_args(arguments)
    require_at_least_one(context=parsed.context, max_tokens=parsed.max_tokens, threads=parsed.threads)
    if not 0.0 <= parsed.temperature < math.inf:
        raise UserError(wanted="--temperature of 0 or more", got=str(parsed.temperature), next_step="correct it")
    model = parsed.model or only_model(Path("dist"))
    if not model.is_file():
        raise UserError(wanted=f"the file {model}", got="no such file", next_step="correct the path")
    options = ChatOptions(
        context_tokens=parsed.context,
        max_tokens=parsed.max_tokens,
        temperature=parsed.temperature,
        threads=parsed.threads,
    )
    opening = [{"role": "system", "content": parsed.system}] if parsed.system else []
    with Speaker(model, options) as speaker:
        if sys.stdin.isatty():
            print(f"{model.name}: {HELP}", flush=True)
        talk(speaker.answer, _questions(), opening, say=_say, goes_on=sys.stdin.isatty())


def only_model(dist: Path) -> Path:
    """The one file for phones under `dist`; UserError where there is none, or more than one to choose from."""
    found = sorted(dist.glob(f"*/*-{ENCODING}.gguf"))
    if len(found) != 1:
        names = ", ".join(map(str, found)) or f"none like {dist}/*/*-{ENCODING}.gguf"
        step = "name one of them: make chat MODEL=FILE" if found else "run make tinyswallow first, or name a file"
        raise UserError(wanted="one GGUF file to talk to", got=names, next_step=step)
    return found[0]


def talk(
    answer: Callable[[list[Message]], Iterator[str]],
    questions: Iterable[str],
    opening: list[Message],
    *,
    say: Callable[[str], None],
    goes_on: bool = False,
) -> None:
    """Answer each question with the conversation so far in view.

    Args:
        answer: gives the pieces of the reply to a conversation; TooLong, before the first piece, where it cannot fit.
        questions: what the user types, a line each; `/reset` and `/exit` are commands, blank lines are none.
        opening: messages before the first question.
        say: told each piece of a reply as it comes.
        goes_on: whether a question that does not fit is said to be so and forgotten.

    Raises:
        TooLong: a single question does not fit, and the conversation does not go on.
    """
    messages = list(opening)
    for line in questions:
        question = line.strip()
        if question == "/exit":
            return
        if question == "/reset":
            messages = list(opening)
        elif question.startswith("/"):
            say(HELP + "\n")
        elif question:
            asked = [*messages, {"role": "user", "content": question}]
            try:
                reply = _reply(answer, asked, oldest=len(opening), say=say)
            except TooLong as error:
                if not goes_on:
                    raise
                say(f"{error}\n")
                continue
            say("\n")
            messages = [*asked, {"role": "assistant", "content": reply}]


def _reply(
    answer: Callable[[list[Message]], Iterator[str]],
    messages: list[Message],
    *,
    oldest: int,
    say: Callable[[str], None],
) -> str:
    """The whole reply, said piece by piece; takes the oldest exchanges, from index `oldest`, away until it fits."""
    reply = ""
    while True:
        try:
            for piece in answer(messages):
                reply += piece
                say(piece)
            return reply
        except TooLong:
            if len(messages) <= oldest + 1:
                raise
            del messages[oldest : oldest + 2]


def _questions() -> Iterator[str]:
    """Lines of stdin; on a terminal with a prompt and a line editor."""
    if not sys.stdin.isatty():
        for number, line in enumerate(sys.stdin.buffer, 1):
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                got = f"line {number}: {error.reason} at byte {error.start + 1}"
                raise UserError(wanted="questions in UTF-8", got=got, next_step="convert them") from error
        return
    with contextlib.suppress(ImportError):  # not every Python is built with it
        # Its import alone gives input() a line editor.
        import readline  # noqa: F401  # pyright: ignore[reportUnusedImport]

    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return


def _say(piece: str) -> None:
    print(piece, end="", flush=True)


if __name__ == "__main__":
    run(main)
