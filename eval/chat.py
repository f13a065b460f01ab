"""Chat with a GGUF file in the terminal: `python -m eval.chat [MODEL.gguf]`, or `make chat`.

With piped input each line is one question, and only the answers are printed. A conversation that outgrows the model's
context loses its oldest turns. Tokenizer and chat template are the file's own, and no text that a user types becomes a
control token.
"""

import contextlib
import math
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common.cli import EXIT_INTERRUPTED, command, require_at_least_one, run
from common.errors import UserError, not_found
from eval.runtimes.llama_process import LlamaCppRuntime
from eval.runtimes.protocol import Message

ENCODING = "Q4_K_M"
"""Which of a recipe's files is the default: the one meant for phones."""
HELP = "/reset forgets the conversation, /exit (or Ctrl-D) ends it"
Answer = Callable[[list[Message]], Iterator[str]]


class ContextOverflow(UserError):
    """The conversation does not fit the context."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatSession:
    """A GGUF file that answers conversations; `UserError` at its start where the file has no chat template."""

    runtime: LlamaCppRuntime
    max_tokens: int
    """Longest answer, in tokens."""
    temperature: float
    """0 always takes the likeliest token."""

    def __post_init__(self) -> None:
        self.runtime.render([{"role": "user", "content": "-"}])

    def answer(self, messages: list[Message]) -> Generator[str]:
        """Pieces of the reply to `messages` as they come.

        Raises:
            ContextOverflow: before the first piece, the messages leave no room for an answer.
            UserError: llama.cpp fails.
        """
        ids = self.runtime.render(messages)
        room = min(self.max_tokens, self.runtime.context_tokens - len(ids))
        if room <= 0:
            wanted, got = f"a question for a context of {self.runtime.context_tokens} tokens", f"{len(ids)} tokens"
            raise ContextOverflow("out-of-range", wanted=wanted, got=got, next_step="ask less, or raise --context")
        yield from self.runtime.stream(ids, max_tokens=room, temperature=self.temperature)


def main(arguments: list[str]) -> int:
    """Parses `arguments` and chats until the input ends; returns the exit code."""
    about = f"Chat with a GGUF file. {HELP}."
    parser = command("eval.chat", about)
    default = f"GGUF file (default: the one dist/*/*-{ENCODING}.gguf)"
    parser.add_argument("model", nargs="?", type=Path, metavar="FILE", help=default)
    parser.add_argument("--system", metavar="TEXT", help="a system prompt")
    parser.add_argument("--context", type=int, default=4096, metavar="N", help="room for the conversation, in tokens")
    parser.add_argument("--max-tokens", type=int, default=512, metavar="N", help="longest answer, in tokens")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="X", help="0: the likeliest token")
    parser.add_argument("--threads", type=int, metavar="N", help="default: the cores, 1 for a model under 64 MiB")
    parsed = parser.parse_args(arguments)
    require_at_least_one(context=parsed.context, max_tokens=parsed.max_tokens, threads=parsed.threads)
    if not 0.0 <= parsed.temperature < math.inf:
        wanted, got = "--temperature of 0 or more", str(parsed.temperature)
        raise UserError("out-of-range", wanted=wanted, got=got, next_step="correct it")
    model = parsed.model or only_model(Path("dist"))
    if not model.is_file():
        raise not_found(f"the file {model}")
    opening: list[Message] = [{"role": "system", "content": parsed.system}] if parsed.system else []
    with contextlib.closing(LlamaCppRuntime(model, context_tokens=parsed.context, threads=parsed.threads)) as runtime:
        session = ChatSession(runtime=runtime, max_tokens=parsed.max_tokens, temperature=parsed.temperature)
        if sys.stdin.isatty():
            print(f"{model.name}: {HELP}", flush=True)
        try:
            chat_loop(session.answer, _questions(), opening, say=_say, keep_going=sys.stdin.isatty())
        except KeyboardInterrupt:  # an end like another; there is nothing to go on with
            _say("\n")
            return EXIT_INTERRUPTED
    return 0


def only_model(dist: Path) -> Path:
    """The one file for phones under `dist`; UserError where there is none, or more than one to choose from."""
    found = sorted(dist.glob(f"*/*-{ENCODING}.gguf"))
    if len(found) == 1:
        return found[0]
    wanted, got = "one GGUF file to chat with", ", ".join(map(str, found)) or f"none like {dist}/*/*-{ENCODING}.gguf"
    if found:
        raise UserError("several", wanted=wanted, got=got, next_step="name one of them: make chat MODEL=FILE")
    raise not_found(wanted, got, next_step="run make tinyswallow first, or name a file")


def chat_loop(
    answer: Answer,
    questions: Iterable[str],
    opening: list[Message],
    *,
    say: Callable[[str], None],
    keep_going: bool = False,
) -> None:
    """Answer each question as the next turn of one conversation, which begins with the messages of `opening`.

    Args:
        answer: `ChatSession.answer`.
        questions: what the user types, a line each; `/reset` and `/exit` are commands, blank lines are skipped.
        say: gets each piece of a reply as it comes.
        keep_going: report a question that does not fit through `say`, forget it and go on, instead of raising.
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
            except ContextOverflow as error:
                if not keep_going:
                    raise
                say(f"{error}\n")
                continue
            say("\n")
            messages = [*asked, {"role": "assistant", "content": reply}]


def _reply(answer: Answer, messages: list[Message], *, oldest: int, say: Callable[[str], None]) -> str:
    """The whole reply, said piece by piece; drops the oldest exchanges, from index `oldest`, until it fits."""
    reply = ""
    while True:
        try:
            for piece in answer(messages):
                reply += piece
                say(piece)
            return reply
        except ContextOverflow:
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
                wanted, got = "questions in UTF-8", f"line {number}: {error.reason} at byte {error.start + 1}"
                raise UserError("wrong-format", wanted=wanted, got=got, next_step="convert them") from error
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
