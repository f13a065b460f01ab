"""llama.cpp in a child process, for quantising, loading, scoring and chat, and a GGUF file as a `Runtime` through it.

llama.cpp aborts its process on many malformed files. In a child that is one UserError with the artifact's name and the
telling line of llama.cpp's log, and the rest of a run goes on. The child ends when its socket closes, and in the middle
of a call when its parent is gone: it never outlives its parent, killed or not.

Protocol: the parent sends `(function, arguments, keywords)` and gets `("result", value)`, `("error", (code, text))` or
`("defect", traceback)`; a generator sends `("piece", value)` for each of its values first, and ends early when the
parent sends None.
"""

import contextlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from common.errors import Code, UserError, unknown_name
from eval.runtimes.protocol import Generation, LogProbs, Message, Pair, check_lengths

_LOGIT_ROWS = 256  # positions whose logits cross the socket at once
_WATCH_S = 0.2
_NEXT_STEPS: dict[Code, str] = {
    "failed": "export the file again; if that fails too, check free memory and disk",
    "wrong-format": "export or download the file again, or take one of a model that this llama.cpp knows",
    "no-memory": "lower the context, or close other programs",
    "not-finite": "check the checkpoint's weights, and export the file again",
}
# Not multiprocessing's own start, which would import the caller's main module, and torch with it, into the child.
_START = (
    "import json, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN);"  # Ctrl-C is the parent's
    "socket, parent, sys.path[:] = json.loads(sys.argv[1]);"
    "from eval.runtimes.llama_engine import serve; serve(socket, parent)"
)


class LlamaProcess:
    """A child process in which llama.cpp works on one artifact, the one that errors name."""

    def __init__(self, artifact: Path) -> None:
        self._name = artifact.name
        self._is_busy, self._log_start = False, 0
        self._death: UserError | None = None
        self._log = tempfile.TemporaryFile("a+b")  # noqa: SIM115 (closed in close)
        self._connection, theirs = multiprocessing.Pipe()
        self.child = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps([theirs.fileno(), os.getpid(), sys.path])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            pass_fds=(theirs.fileno(),),
            # An abort would first start a debugger on itself, and may hang there.
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},
        )
        theirs.close()

    def call(self, function: str, *arguments: Any, watch: Callable[[str], None] | None = None, **keywords: Any) -> Any:
        """What a function of `eval.runtimes.llama_engine` returns, a method of its Engine after `load`.

        `watch` gets the log of this call so far, a few times a second.

        Raises:
            UserError: llama.cpp fails, or its process dies; then every later call raises the same.
            RuntimeError: a defect of this product in the child, with its traceback.
        """
        self._send((function, arguments, keywords))
        while watch is not None and not self._connection.poll(_WATCH_S):
            watch(self._logged())
        return self._receive()[1]

    def iterate(self, function: str, *arguments: Any, **keywords: Any) -> Generator[Any]:
        """The values of a function that is a generator, as they come; raises as `call` does. Closing cancels it."""
        self._send((function, arguments, keywords))
        try:
            while (reply := self._receive())[0] == "piece":
                yield reply[1]
        except GeneratorExit:
            with contextlib.suppress(UserError):  # it has died meanwhile
                if not self._connection.closed:
                    self._send(None)
                    while self._receive()[0] == "piece":
                        pass
            raise

    def close(self) -> None:
        """End the child: at once in the middle of a call, which would only notice at its end."""
        self._connection.close()
        if self._is_busy:
            self.child.kill()
        try:
            self.child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self._log.close()

    def _send(self, request: tuple[str, tuple[Any, ...], dict[str, Any]] | None) -> None:
        if request is not None:
            assert not self._is_busy, "one call at a time"
            self._is_busy, self._log_start = True, os.fstat(self._log.fileno()).st_size
        try:
            self._connection.send(request)
        except OSError as error:
            raise self._died() from error

    def _receive(self) -> tuple[str, Any]:
        try:
            kind, value = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        self._is_busy = kind == "piece"
        if kind == "error":
            raise self._error(*value)
        if kind == "defect":
            raise RuntimeError(f"in the llama.cpp process for {self._name}: {value}")
        return kind, value

    def _died(self) -> UserError:
        self._is_busy = False
        if self._death is None:
            code = self.child.wait()
            cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            self._death = self._error("failed", f"llama.cpp died with {cause}")
        return self._death

    def _error(self, code: Code, text: str) -> UserError:
        wanted, got = "a GGUF file that llama.cpp can use", f"{self._name}: {text}{self._telling_line()}"
        return UserError(code, wanted=wanted, got=got, next_step=_NEXT_STEPS.get(code, _NEXT_STEPS["failed"]))

    def _logged(self) -> str:
        # Not seek and read: the child writes at the same offset.
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), max(size - self._log_start, 0), self._log_start).decode(errors="replace")

    def _telling_line(self) -> str:
        """The first line that llama.cpp logged of an error during this call, in brackets; "" where it logged none."""
        telling = [line for line in self._logged().splitlines() if re.search("error|assert|fail", line, re.IGNORECASE)]
        # Without folders: they are those of the machine that compiled llama.cpp.
        return f" ({re.sub(r'[^ ]*/', '', telling[0].strip())[:300]})" if telling else ""


class LlamaCppRuntime(LlamaProcess):
    """A GGUF file with its own tokenizer and chat template, see `Runtime`.

    Args:
        path: the file.
        kv, context_tokens: as in `open_runtime`.
        threads: threads to compute with; default is what fits the machine and the model.
        repack: hold a second copy of the weights in the layout that is fastest here; without it, loading is cheaper.
    """

    def __init__(
        self,
        path: Path,
        *,
        kv: str = "f16",
        context_tokens: int | None = None,
        threads: int | None = None,
        repack: bool = True,
    ) -> None:
        if kv not in ("f16", "f32"):
            raise unknown_name("type of the KV cache", kv, ("f16", "f32"))
        super().__init__(path)
        try:
            facts = self.call("load", str(path.absolute()), kv=kv, threads=threads, repack=repack)
        except BaseException:
            self.close()
            raise
        self.vocabulary: int = facts["vocabulary"]
        self.context_tokens: int = min(facts["context_tokens"], context_tokens or facts["context_tokens"])
        self.document_end_id: int = facts["document_end_id"]

    def encode(self, text: str) -> list[int]:
        return self.call("encode", text)

    def render(self, messages: Sequence[Message]) -> list[int]:
        return self.call("render", list(messages))

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        return self.call("decode", list(ids), skip_special=skip_special)

    def logprobs(self, ids: Sequence[int]) -> Iterator[LogProbs]:
        check_lengths([len(ids)], self.context_tokens)
        for start in range(0, len(ids), _LOGIT_ROWS):
            yield self.call("logprobs_chunk", list(ids[start : start + _LOGIT_ROWS]), start, len(ids))

    def score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        check_lengths([len(context) + len(continuation) for context, continuation in pairs], self.context_tokens)
        return self.call("score", pairs)

    def generate(self, prompts: Sequence[Sequence[int]], *, max_tokens: int, stop: Sequence[str]) -> list[Generation]:
        check_lengths([len(prompt) + max_tokens for prompt in prompts], self.context_tokens)
        return self.call("generate", prompts, max_tokens, list(stop))

    def stream(self, prompt: Sequence[int], *, max_tokens: int, temperature: float) -> Generator[str]:
        """Pieces of one continuation as they come, whole characters; temperature 0 takes the likeliest token.

        What was computed for the last prompt is reused, so that a conversation that goes on costs its new part only.
        """
        check_lengths([len(prompt) + max_tokens], self.context_tokens)
        return self.iterate("stream", list(prompt), max_tokens, temperature, room_tokens=self.context_tokens)
