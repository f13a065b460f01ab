"""A GGUF file that answers conversations, a piece of text at a time: llama.cpp in a child process.

llama.cpp ends its process on many malformed files; in a child that is one UserError with the file's name and
llama.cpp's last words. Tokenizer and chat template are the file's own. What was computed for a conversation is kept
while it goes on, which is what a chat needs and an evaluation (`eval.runtimes`) does not. It knows no terminal.
"""

import codecs
import ctypes
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

from common.errors import UserError

Message = dict[str, str]

_LONGEST_PIECE_BYTES = 1024


class TooLong(UserError):
    """The conversation does not fit the context."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatOptions:
    """How the file answers."""

    context_tokens: int
    """Room for the conversation, in tokens; less where the model was made for less."""
    max_tokens: int
    """Longest answer, in tokens."""
    temperature: float
    """0 always takes the likeliest token."""
    threads: int
    """Threads that llama.cpp computes with."""


class Speaker:
    """A GGUF file in a child process that answers conversations, a piece of text at a time."""

    def __init__(self, model: Path, options: ChatOptions) -> None:
        self._model = model
        self._log = tempfile.NamedTemporaryFile(prefix="llama-", suffix=".log")  # noqa: SIM115 (closed in __exit__)
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, str(model.absolute()), options, self._log.name), daemon=True
        )
        self._process.start()
        theirs.close()

    def __enter__(self) -> "Speaker":
        try:
            self._next("ready")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child."""
        self._connection.close()
        self._process.join(timeout=2)
        if self._process.is_alive():  # in the middle of an answer: it would only notice at the answer's next piece
            self._process.kill()
            self._process.join()
        self._log.close()

    def answer(self, messages: list[Message]) -> Iterator[str]:
        """Pieces of the reply to `messages`; UserError where they no longer fit, or llama.cpp fails."""
        self._connection.send(messages)
        while (piece := self._next("piece")) is not None:
            yield piece

    def _next(self, expected: str) -> str | None:
        try:
            kind, text = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(timeout=5)
            code = self._process.exitcode or 0
            cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise self._refused(f"llama.cpp died with {cause}{self._last_words()}") from error
        if kind == "too long":
            raise TooLong(
                wanted="a question that fits the context", got=text, next_step="ask a shorter one, or raise --context"
            )
        if kind != expected:
            raise self._refused(text + self._last_words())
        return text

    def _refused(self, got: str) -> UserError:
        return UserError(
            wanted="a GGUF chat model that llama.cpp runs",
            got=f"{self._model}: {got}",
            next_step="export the file again, or name another",
        )

    def _last_words(self) -> str:
        """The first line of llama.cpp's log that tells of an error, in brackets, or nothing."""
        lines = Path(self._log.name).read_text(errors="replace").splitlines()
        telling = [line.strip() for line in lines if any(word in line.lower() for word in ("error", "assert", "fail"))]
        return f" ({telling[0][:300]})" if telling else ""


def _serve(connection: Connection, model: str, options: ChatOptions, log: str) -> None:
    """The child: load the file, then answer conversations until the pipe closes."""
    handle = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; the closed pipe then ends the child
    try:
        engine = _Engine(model, options)
    except Exception as error:
        connection.send(("failed", str(error)))
        return
    connection.send(("ready", ""))
    while True:
        try:
            messages = connection.recv()
        except EOFError:
            return
        try:
            for piece in engine.pieces(messages):
                connection.send(("piece", piece))
            connection.send(("piece", None))
        except BrokenPipeError:
            return
        except _NoRoom as error:
            connection.send(("too long", str(error)))
        except Exception as error:
            connection.send(("failed", f"{type(error).__name__}: {error}"))


class _NoRoom(Exception):
    """What TooLong is called in the child."""


class _Engine:
    """The loaded file, in the child; RuntimeError or ValueError where llama.cpp refuses it."""

    def __init__(self, model: str, options: ChatOptions) -> None:
        import llama_cpp
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        described = llama_cpp.Llama(model, vocab_only=True)
        template = described.metadata.get("tokenizer.chat_template")
        if template is None:
            raise RuntimeError("it holds no chat template")
        trained_tokens = int(described.metadata[f"{described.metadata['general.architecture']}.context_length"])
        described.close()
        self._context_tokens = min(options.context_tokens, trained_tokens)
        self._options = options
        self._llama = llama_cpp.Llama(
            model, n_ctx=self._context_tokens, n_threads=options.threads, n_threads_batch=options.threads
        )
        self._library = llama_cpp
        vocabulary = llama_cpp.llama_model_get_vocab(self._llama.model)
        assert vocabulary is not None
        self._vocabulary = vocabulary
        first, last = (self._piece(token, special=True) for token in (self._llama.token_bos(), self._llama.token_eos()))
        self._template = Jinja2ChatFormatter(template, bos_token=first.decode(), eos_token=last.decode())

    def pieces(self, messages: list[Message]) -> Iterator[str]:
        """The reply as it comes, whole characters only; _NoRoom where the conversation does not fit."""
        prompt = self._template(messages=messages).prompt  # pyright: ignore[reportArgumentType]
        ids = self._llama.tokenize(prompt.encode(), add_bos=False, special=True)
        room_tokens = min(self._options.max_tokens, self._context_tokens - len(ids))
        if room_tokens <= 0:
            raise _NoRoom(f"{len(ids)} tokens for a context of {self._context_tokens}")
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        # llama.cpp keeps what it has read: of a conversation that goes on, only the new part is computed.
        for count, token in enumerate(self._llama.generate(ids, temp=self._options.temperature), start=1):
            if self._library.llama_vocab_is_eog(self._vocabulary, token):
                break
            piece = decoder.decode(self._piece(token))
            if piece:
                yield piece
            if count == room_tokens:
                break
        rest = decoder.decode(b"", final=True)
        if rest:
            yield rest

    def _piece(self, token: int, *, special: bool = False) -> bytes:
        """Bytes of one token, which may be a part of a character; none for a token that is absent (below 0)."""
        if token < 0:
            return b""
        buffer = ctypes.create_string_buffer(_LONGEST_PIECE_BYTES)
        count = self._library.llama_token_to_piece(
            self._vocabulary,
            token,
            buffer,
            _LONGEST_PIECE_BYTES,
            0,
            special,  # pyright: ignore[reportArgumentType]
        )
        return buffer.raw[: max(count, 0)]
