"""Quantised GGUF files from an F16 one, by llama.cpp's own quantiser, and the check that a file loads.

Both run llama.cpp in a child process (`export.llama_child`), so that an abort becomes an error that names the file.
Rows whose length does not fit an encoding's blocks fall back by tensor as llama.cpp decides; `fallbacks` lists them. It
knows no checkpoint and no stage.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import LlamaFileType

from common.errors import UserError
from common.metrics import progress
from export.gguf_file import GgufContents

# What each encoding is made of besides float32 vectors (llama.cpp's src/llama-quant.cpp); any other type is a fallback.
MATRIX_TYPES = {"F16": {"F16"}, "Q8_0": {"Q8_0"}, "Q5_K_M": {"Q5_K", "Q6_K"}, "Q4_K_M": {"Q4_K", "Q6_K"}}
FILE_TYPES = {
    "F16": LlamaFileType.MOSTLY_F16,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
    "Q5_K_M": LlamaFileType.MOSTLY_Q5_K_M,
    "Q4_K_M": LlamaFileType.MOSTLY_Q4_K_M,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """What llama.cpp found in a file: `ids` of the probe text, `vocabulary` tokens, `context_tokens` of training."""

    ids: list[int]
    vocabulary: int
    context_tokens: int


def quantize(source: Path, target: Path, encoding: str, *, threads: int) -> None:
    """Writes `target` in `encoding` from the F16 file `source`.

    Raises:
        UserError: llama.cpp refused or aborted, with its last message.
    """
    log = _run(
        ["quantize", str(source), str(target), str(int(FILE_TYPES[encoding])), str(threads)],
        artifact=target,
        label=encoding,
    )
    assert target.is_file(), log


def load(path: Path, text: str) -> Loaded:
    """Loads a file in llama.cpp and tokenises `text` with its vocabulary.

    Raises:
        UserError: llama.cpp refused the file or aborted.
    """
    return Loaded(**json.loads(_run(["load", str(path)], artifact=path, text=text)))


def fallbacks(contents: GgufContents, encoding: str) -> list[dict[str, Any]]:
    """The matrices that are in another type than the encoding's own: tensor, type and row length in weights."""
    return [
        {"tensor": name, "type": tensor.type, "row_length": tensor.shape[-1]}
        for name, tensor in contents.tensors.items()
        if len(tensor.shape) > 1 and tensor.type not in MATRIX_TYPES[encoding]
    ]


def _run(arguments: list[str], *, artifact: Path, label: str | None = None, text: str = "") -> str:
    """Runs the child and returns its stdout; counts the tensors off in a bar where its log numbers them."""
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "GGML_NO_BACKTRACE": "1",  # else an abort starts a debugger first, where there is one
    }
    command = [sys.executable, "-m", "export.llama_child", *arguments]
    last: list[str] = []
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as answered:
        given.write(text.encode())
        given.seek(0)
        with subprocess.Popen(command, stdin=given, stdout=answered, stderr=subprocess.PIPE, env=environment) as child:
            assert child.stderr is not None
            with progress(1, label=label or arguments[0], unit="tensors") as bar:
                for raw in child.stderr:
                    line = raw.decode(errors="replace").strip()
                    last = [*last[-19:], line] if line.strip(".") else last
                    counted = re.match(r"\[\s*(\d+)/\s*(\d+)\]", line)
                    if label and counted:
                        bar.total = int(counted[2])
                        bar.update(int(counted[1]) - bar.n)
        if child.returncode != 0:
            raise _refused(child.returncode, last, artifact)
        answered.seek(0)
        return answered.read().decode()


def _refused(code: int, last: list[str], artifact: Path) -> UserError:
    reasons = [line for line in last if re.search(r"error|fail|abort|assert|missing|wrong|exception", line, re.I)]
    how = f"aborted by signal {-code}" if code < 0 else f"exit {code}"
    return UserError(
        wanted=f"{artifact.name} written and loaded by llama.cpp",
        got=f"{how}: {(reasons or last or ['no message'])[-1]}",
        next_step="Check free memory and disk and the checkpoint's config.json, then start again.",
    )
