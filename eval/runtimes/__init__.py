"""One protocol for all that can be measured: encode, render, logprobs, score, generate.

Each runtime brings its own tokenizer and chat template, so that a shipped file is measured as a phone would run it.
`open_runtime` picks the runtime by what the path is; the libraries behind it load only then. Independent of tasks and
metrics. The modules:

- `batches`: the layout of items: shared contexts, waves, where an answer ends;
- `torch_runtime`: a checkpoint folder through transformers;
- `llama_process`: a GGUF file through llama.cpp in a child process, also for quantising and chat;
- `llama_engine`, `llama_text`: what runs in that child: numbers, and the file's tokenizer and template.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from common.errors import UserError

if TYPE_CHECKING:
    from common.device import Machine

Message = dict[str, Any]
Pair = tuple[Sequence[int], Sequence[int]]
NOT_RUN = "not run on this platform"
"""Why a Core ML package has no scores."""
LogProbs = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """One greedy answer."""

    text: str
    """Without special tokens, cut before the first stop string."""
    ids: list[int]
    """Every generated id but the end token."""
    stopped: bool
    """The model gave an end token before the limit, and no stop string cut the text."""


class Runtime(Protocol):
    """What every artifact can do; ids are those of its own tokenizer."""

    context_tokens: int
    """The longest sequence that the model was made for, or less where that was asked for."""
    vocabulary: int
    """Ids that its tokenizer can produce; rows of `logprobs` are this wide."""
    document_end_id: int
    """The id that closes a document, the context of a text that has none."""

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: no token is added, and control tokens spelt in it stay plain text."""
        ...

    def render(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation by the artifact's own chat template, with the assistant's turn opened."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of ids; incomplete UTF-8 becomes U+FFFD."""
        ...

    def logprobs(self, ids: Sequence[int]) -> Iterator[LogProbs]:
        """Log-softmax of the next token after each id, float32 [C, V] in chunks of consecutive positions."""
        ...

    def score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """For each (context, continuation), both non-empty: log p(continuation | context) in nats, and whether greedy
        decoding would give it. Equal contexts are computed once."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], *, max_tokens: int, stop: Sequence[str]) -> list[Generation]:
        """Greedy continuations of at most `max_tokens` ids, in the order of the prompts."""
        ...

    def close(self) -> None:
        """Frees the model; no call is possible afterwards."""
        ...


def open_runtime(
    artifact: Path,
    *,
    machine: "Machine | None" = None,
    kv: str = "f16",
    context_tokens: int | None = None,
    exact: bool = False,
) -> Runtime:
    """Opens the runtime that the artifact needs.

    Args:
        artifact: a checkpoint folder (holds config.json), a `.gguf` file or a `.mlpackage` folder.
        machine: where a checkpoint runs; without it where this machine is fastest. A GGUF always runs on the CPU.
        kv: type of llama.cpp's KV cache, "f16" as on a phone or "f32" as in a float32 checkpoint.
        context_tokens: the longest sequence that will be asked for; default is the model's own.
        exact: a checkpoint computes in float32 on an accelerator too, as a reference.

    Raises:
        UserError: no such artifact, a broken one, or one that this platform cannot run.
    """
    if artifact.suffix == ".mlpackage":
        got, next_step = f"{artifact.name}: {NOT_RUN}", "measure the checkpoint or a GGUF file of the same model"
        raise UserError("unsupported", wanted="an artifact that runs here", got=got, next_step=next_step)
    if artifact.suffix == ".gguf" and artifact.is_file():
        from eval.runtimes.llama_process import LlamaCppRuntime

        return LlamaCppRuntime(artifact, kv=kv, context_tokens=context_tokens)
    if (artifact / "config.json").is_file():
        from eval.runtimes.torch_runtime import CheckpointRuntime

        return CheckpointRuntime(artifact, machine=machine, context_tokens=context_tokens, exact=exact)
    raise UserError(
        "not-found",
        wanted="a checkpoint folder with config.json, a .gguf file or a .mlpackage",
        got=f"{artifact.name}, which {'holds no config.json' if artifact.is_dir() else 'does not exist'}",
        next_step="give the path of one of these",
    )
