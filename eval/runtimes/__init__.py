"""Everything that can be measured behind one protocol: encode, render, logprobs, score, generate.

Each runtime brings its own tokenizer and chat template, so that a shipped file is measured as a phone would run it.
`open_runtime` picks the runtime by what the path is; the libraries behind it load only then. Independent of tasks and
metrics. The modules:

- `protocol`: the protocol, and the layout of items: shared contexts, waves, where an answer ends;
- `torch_runtime`: a checkpoint folder through transformers;
- `llama_process`: starts llama.cpp in a child process for a GGUF file, and talks to it;
- `llama_engine`, `llama_text`: what runs in that child: loading, quantising, numbers; its tokenizer and template.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError, not_found
from eval.runtimes.protocol import NOT_RUN, Runtime

if TYPE_CHECKING:
    from common.device import Machine


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
    got = f"{artifact.name}, which {'holds no config.json' if artifact.is_dir() else 'does not exist'}"
    raise not_found("a checkpoint folder with config.json, a .gguf file or a .mlpackage", got)
