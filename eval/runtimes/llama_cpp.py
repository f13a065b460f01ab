"""A GGUF file as a `Runtime`: llama.cpp in a child process, with the file's own tokenizer and chat template.

llama.cpp aborts its process on many malformed files. In a child that is this file's error, named with llama.cpp's last
words, and whatever else is measured goes on. The child ends with its parent, killed or not: it reads a socket that then
closes. No Python tokenizer is involved. It knows no task and no metric.
"""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from common.errors import UserError
from eval.runtimes import Generation, LogProbs, Message, Pair
from eval.runtimes.batches import check_lengths

# Positions whose logits cross the socket at once.
_LOGIT_ROWS = 256
# Not multiprocessing's own start, which would import the caller's main module, and torch with it, into the child.
_START = (
    "import json, sys; options = json.loads(sys.argv[1]); sys.path[:] = options.pop('search');"
    "from eval.runtimes.llama_cpp import serve; serve(**options)"
)


def default_threads() -> int:
    """Cores that this process may use, or what OMP_NUM_THREADS says, as for torch."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LlamaCppRuntime:
    """See `eval.runtimes.Runtime`."""

    def __init__(self, path: Path, *, kv: str = "f16", context_tokens: int | None = None) -> None:
        if kv not in ("f16", "f32"):
            raise UserError(wanted="a KV cache of type f16 or f32", got=kv, next_step="give one of these.")
        self._name = path.name
        self._log = tempfile.TemporaryFile("a+b")  # noqa: SIM115 (closed in close)
        self._connection, theirs = multiprocessing.Pipe()
        options = {"socket": theirs.fileno(), "path": str(path.absolute()), "kv": kv, "threads": default_threads()}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps({"search": sys.path, **options})],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            pass_fds=(theirs.fileno(),),
            # An abort would first start a debugger on itself, and may hang there.
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},
        )
        theirs.close()
        try:
            facts: dict[str, int] = self._reply()
        except BaseException:
            self.close()
            raise
        self.vocabulary = facts["vocabulary"]
        self.context_tokens = min(facts["context_tokens"], context_tokens or facts["context_tokens"])
        self.document_end_id = facts["document_end_id"]

    def encode(self, text: str) -> list[int]:
        return self._call("encode", text)

    def render(self, messages: Sequence[Message]) -> list[int]:
        return self._call("render", list(messages))

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        return self._call("decode", list(ids), skip_special=skip_special)

    def logprobs(self, ids: Sequence[int]) -> Iterator[LogProbs]:
        check_lengths([len(ids)], self.context_tokens)
        for start in range(0, len(ids), _LOGIT_ROWS):
            yield self._call("logprobs_chunk", list(ids[start : start + _LOGIT_ROWS]), start, len(ids))

    def score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        check_lengths([len(context) + len(continuation) for context, continuation in pairs], self.context_tokens)
        return self._call("score", pairs)

    def generate(self, prompts: Sequence[Sequence[int]], *, max_tokens: int, stop: Sequence[str]) -> list[Generation]:
        check_lengths([len(prompt) + max_tokens for prompt in prompts], self.context_tokens)
        return self._call("generate", prompts, max_tokens, list(stop))

    def close(self) -> None:
        self._connection.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        try:
            self._connection.send((method, arguments, options))
        except OSError as error:
            raise self._died() from error
        return self._reply()

    def _reply(self) -> Any:
        try:
            succeeded, value = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if not succeeded:
            raise UserError(
                wanted="a GGUF file that llama.cpp runs",
                got=f"{self._name}: {value}{self._last_words()}",
                next_step="export the file again.",
            )
        return value

    def _died(self) -> UserError:
        code = self._process.wait()
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return UserError(
            wanted="a GGUF file that llama.cpp runs",
            got=f"{self._name}: llama.cpp died with {cause}{self._last_words()}",
            next_step="export the file again.",
        )

    def _last_words(self) -> str:
        """The first line of the child's log that tells of an error, in brackets, or nothing."""
        self._log.seek(0)
        for line in self._log.read().decode(errors="replace").splitlines():
            if any(word in line.lower() for word in ("error", "assert", "fail")):
                # Without folders: they are those of the machine that compiled llama.cpp.
                return f" ({re.sub(r'[^ ]*/', '', line.strip())[:300]})"
        return ""


def serve(*, socket: int, path: str, kv: str, threads: int) -> None:
    """The child: loads the file, then answers calls until the socket closes.

    Args:
        socket: file descriptor of this end.
        path, kv, threads: what `eval.runtimes.llama_engine.Engine` takes.
    """
    connection = Connection(socket)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; the closed socket then ends the child
    try:
        from eval.runtimes.llama_engine import Engine

        engine = Engine(path, kv=kv, threads=threads)
        reply = (True, engine.facts())
    except Exception as error:
        connection.send((False, str(error)))
        return
    while True:
        try:
            connection.send(reply)
            method, arguments, keywords = connection.recv()
        except (EOFError, OSError):
            return
        try:
            reply = (True, getattr(engine, method)(*arguments, **keywords))
        except Exception as error:
            reply = (False, str(error) or type(error).__name__)
