"""The stage `gguf`: one GGUF file an encoding from a Qwen2, Qwen3 or Llama-family checkpoint.

`python -m export gguf CHECKPOINT --out DIR [--encoding Q4_K_M ...]` runs it by itself. F16 is written first, straight
from the safetensors; llama.cpp's own quantiser makes the others from it. Rows whose length does not fit an encoding's
blocks fall back by tensor as llama.cpp decides, and are listed. Each file is read back, loaded in llama.cpp, and its
tokenizer and chat template compared with the checkpoint's on probes before it gets its name. `eval.fidelity` measures
the loss.
"""

import contextlib
import errno
import os
import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import LlamaFileType

from common.disk import free_bytes
from common.errors import UserError, unknown_name
from common.gguf_header import GgufHeader, read_header
from common.metrics import progress
from common.provenance import read_sources, write_sources
from common.rendering import Message
from common.store import Workspace, stage
from common.tokenizer import PROBE, Tokenizer
from eval.runtimes.llama_process import LlamaCppRuntime, LlamaProcess
from eval.runtimes.protocol import shared_prefix
from export.gguf_file import write_f16
from export.licences import licence_of
from export.model_folder import Checkpoint, check_stem
from export.vocabulary import read_vocabulary

# What each encoding is made of besides float32 vectors (llama.cpp's src/llama-quant.cpp); any other type is a fallback.
MATRIX_TYPES = {"F16": {"F16"}, "Q8_0": {"Q8_0"}, "Q5_K_M": {"Q5_K", "Q6_K"}, "Q4_K_M": {"Q4_K", "Q6_K"}}
COUNTED = re.compile(r"^\[\s*(\d+)/\s*(\d+)\]", re.MULTILINE)
"""Where llama.cpp's quantiser logs which tensor of how many it writes."""
_FULL_BYTES = 2**20
"""With less room than this, a write that failed has filled the disk."""
_USER, _ANSWER = {"role": "user", "content": PROBE}, {"role": "assistant", "content": "はい。 42"}
_TALKS: tuple[list[Message], ...] = ([_USER], [_USER, _ANSWER, _USER], [{"role": "system", "content": PROBE}, _USER])
"""Conversations of which llama.cpp must make the checkpoint's ids, by the file's own template."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufConfig:
    """What to write."""

    stem: str
    """The files are named `<stem>-<encoding>.gguf`; also the model's name inside them."""
    encodings: tuple[str, ...] = ("F16", "Q8_0", "Q4_K_M")
    """The weight schemes, a file each."""
    licence: str | None = None
    """The model's licence, an SPDX expression or a name; None takes what the sources of its data state."""

    def __post_init__(self) -> None:
        unknown = [encoding for encoding in self.encodings if encoding not in MATRIX_TYPES]
        if unknown or not self.encodings or len(set(self.encodings)) != len(self.encodings):
            raise unknown_name("one or more different encodings", ", ".join(self.encodings) or "none", MATRIX_TYPES)
        check_stem(self.stem)


@stage(version=3)
def gguf(config: GgufConfig, workspace: Workspace, checkpoint: Path) -> dict[str, Any]:
    """Writes the GGUF files of a checkpoint folder into the workspace, and its list of data sources where it has one.

    Returns:
        `architecture`, `parameters`, `context_tokens`, `vocabulary`, `pre_tokenizer`, `chat_template` (there is one),
        and `files`: {file, encoding, bytes, bits_per_weight, tensor_types, fallbacks, parameters} for each.

    Raises:
        UserError: a checkpoint that cannot be exported faithfully, or a file that llama.cpp refuses.
    """
    source, sources = Checkpoint(checkpoint), read_sources(checkpoint)
    vocabulary = read_vocabulary(checkpoint, rows=source.rows)
    probes = _probes(Tokenizer.load(checkpoint), with_prompts=bool(vocabulary.chat_templates))
    scratch = workspace.folder / "scratch"
    scratch.mkdir(exist_ok=True)
    # A source of the quantised files even where F16 itself is not asked for.
    f16 = scratch / f"{config.stem}-F16.gguf"
    licence = licence_of(sources, config.licence)
    write_f16(source, vocabulary, f16, name=config.stem, licence=licence, sources=sources)
    reference = read_header(f16)
    files: list[dict[str, Any]] = []
    for encoding in sorted(config.encodings, key="F16".__eq__):  # F16 last: it moves
        made = scratch / f"{config.stem}-{encoding}.gguf"
        if encoding != "F16":
            quantize(f16, made, encoding, threads=workspace.machine.threads)
        header = read_header(made)
        _check_same_tensors(made, header, reference)
        _check_loads(made, probes, rows=source.rows)
        os.replace(made, workspace.folder / made.name)
        files.append(_facts(made.name, encoding, header))
    write_sources(workspace.folder, sources)
    files.sort(key=lambda file: config.encodings.index(file["encoding"]))
    return {
        "architecture": source.architecture,
        "parameters": reference.parameters,
        "context_tokens": int(source.config.max_position_embeddings),
        "vocabulary": {"rows": source.rows, "tokens": vocabulary.size},
        "pre_tokenizer": vocabulary.pre,
        "chat_template": bool(vocabulary.chat_templates),
        "files": files,
    }


def quantize(source: Path, target: Path, encoding: str, *, threads: int) -> None:
    """Writes `target` from the F16 file `source` by llama.cpp's own quantiser; UserError if that refuses or aborts."""
    with closing(LlamaProcess(target)) as process, progress(1, label=encoding, unit="tensors") as bar:

        def watch(log: str) -> None:
            for done, total in COUNTED.findall(log)[-1:]:
                bar.total = int(total)
                bar.update(int(done) - bar.n)

        file_type = int(LlamaFileType[f"MOSTLY_{encoding}"])
        try:
            process.call("quantize", str(source), str(target), file_type, threads, watch=watch)
        except UserError as error:
            if free_bytes(target.parent) < _FULL_BYTES:  # llama.cpp does not say why it could not write
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from error
            raise


def _facts(name: str, encoding: str, header: GgufHeader) -> dict[str, Any]:
    """What the manifest says of a file; `fallbacks` are the matrices in another type than the encoding's own."""
    return {
        "file": name,
        "encoding": encoding,
        "bytes": header.bytes,
        "bits_per_weight": round(8 * header.bytes / header.parameters, 4),
        "tensor_types": header.tensor_types,
        "fallbacks": [
            {"tensor": name, "type": tensor.type, "row_length": tensor.shape[-1]}
            for name, tensor in header.tensors.items()
            if len(tensor.shape) > 1 and tensor.type not in MATRIX_TYPES[encoding]
        ],
        "parameters": header.parameters,
    }


def _check_same_tensors(path: Path, header: GgufHeader, reference: GgufHeader) -> None:
    """What was written has the tensors and shapes of the F16 file, vectors in float32."""
    shapes = {name: tensor.shape for name, tensor in header.tensors.items()}
    wanted = {name: tensor.shape for name, tensor in reference.tensors.items()}
    vectors = {tensor.type for tensor in header.tensors.values() if len(tensor.shape) == 1}
    if shapes != wanted or vectors - {"F32"}:
        got = f"{len(shapes)} tensors, vectors in {', '.join(sorted(vectors))} in {path.name}"
        next_step = "start again; if it fails twice, the installed llama-cpp-python is not the tested version"
        raise UserError(
            "mismatch", wanted=f"{len(wanted)} tensors as in F16, vectors in F32", got=got, next_step=next_step
        )


def _probes(tokenizer: Tokenizer, *, with_prompts: bool) -> list[tuple[str | list[Message], list[int]]]:
    """Texts and, for a tokenizer with a chat template, conversations, each with the checkpoint's ids."""
    probes: list[tuple[str | list[Message], list[int]]] = [(PROBE, tokenizer.encode(PROBE))]
    for talk in _TALKS if with_prompts else ():
        with contextlib.suppress(UserError):  # a template may want other messages
            probes.append((talk, tokenizer.render_prompt(talk)))
    return probes


def _check_loads(path: Path, probes: Sequence[tuple[str | list[Message], list[int]]], *, rows: int) -> None:
    """llama.cpp loads the file, and gives the checkpoint's ids for the probes by its own tokenizer and template."""
    with closing(LlamaCppRuntime(path, repack=False)) as loaded:
        found = [loaded.encode(probe) if isinstance(probe, str) else loaded.render(probe) for probe, _ in probes]
        vocabulary = loaded.vocabulary
    if vocabulary != rows:
        got, next_step = f"{vocabulary} in {path.name}", "start again; if it fails twice, report it"
        raise UserError("mismatch", wanted=f"{rows} tokens in llama.cpp", got=got, next_step=next_step)
    for (probe, expected), ids in zip(probes, found, strict=True):
        if ids != expected:
            what = "text" if isinstance(probe, str) else "conversation"
            wanted = f"the same ids for a probe {what} in llama.cpp as in the checkpoint's tokenizer"
            got = f"{shared_prefix(ids, expected)} of {len(expected)} ids in {path.name}"
            next_step = "use a tokenizer whose pre-tokenizer and normaliser llama.cpp knows, such as Qwen2's"
            if what == "conversation":
                next_step = "correct added tokens that strip blanks around them (lstrip, rstrip), or the chat template"
            raise UserError("mismatch", wanted=wanted, got=got, next_step=next_step)
