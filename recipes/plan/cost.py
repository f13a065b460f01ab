"""What a training run costs: floating-point operations, bytes on each GPU, hours. Pure functions of a `Run`.

FLOPs are those of the matrix products. What has no product (norms, softmax, the optimizer) is a few per cent and is
part of the utilisation. Nothing is computed twice: the fused loss forms the head's gradient within its forward pass,
and no block is run again for its backward pass. Bytes on a GPU are a count of the tensors that are known to be there,
and an estimate where autograd decides.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from common.model_shape import ModelShape, forward_flops

FLOAT32, BFLOAT16 = 4, 2
TRAINED_BYTES = 16
"""Bytes a trained parameter: float32 weight, gradient and the two moments of AdamW."""
LOGIT_TEMPORARIES = 7
"""Float32 tensors of a chunk's logits that exist at once on a GPU, where a chunk is one block: both sides, TAID's
target, both log-softmaxes, one softmax and a product. Counted in `common.divergences.soft_cross_entropy`."""
OVERHEAD_BYTES = 2 * 2**30
"""Of each GPU in use: CUDA's context, the work spaces of its libraries and what the allocator cannot use. Estimate."""
TEACHER_WEIGHTS = "teacher: weights in bf16"
GPU_CHUNK_TOKENS = 512
"""Chunk of the loss on a GPU and in float32 (`common.fused_linear_loss`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One training run."""

    stage: str
    """The artifact that it makes."""
    student: ModelShape
    """The model that is trained."""
    teacher: ModelShape | None
    """The frozen model whose logits are the target."""
    vocab_size: int
    """Columns of the logits: ids of the tokenizer, to which both heads are cropped."""
    steps: int
    """Optimizer steps."""
    rows_per_step: int
    """Packed rows of one step."""
    sequence_tokens: int
    """Tokens of a row."""
    micro_batch_rows: int
    """Rows of one forward pass."""
    chunk_tokens: int
    """Tokens whose logits exist at once."""
    saved_dtype_bytes: int
    """Bytes a weight in the finished checkpoint."""

    @property
    def tokens(self) -> int:
        """Tokens of the whole run, full rows: packing leaves a few per cent free."""
        return self.steps * self.rows_per_step * self.sequence_tokens

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens of one forward pass, at most."""
        return min(self.micro_batch_rows, self.rows_per_step) * self.sequence_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """A GPU by name."""

    name: str
    peak_flop_per_s: float
    """Dense bf16 products."""
    memory_bytes: int
    utilisation: float
    """Share of the peak that a step reaches."""
    basis: str
    """`assumed`, or by what the utilisation was measured."""
    source: str
    """Of peak and memory."""

    def hours(self, flops: float) -> float:
        """Hours for this work on one of it."""
        return flops / (self.peak_flop_per_s * self.utilisation) / 3600


class Flops(NamedTuple):
    """Floating-point operations of a training run by pass."""

    teacher_forward: float
    student_forward: float
    student_backward: float
    """With the head's two products, which the fused loss computes within the forward pass."""
    recomputation: float

    @property
    def total(self) -> float:
        return sum(self)


@cache
def gpus() -> tuple[Gpu, ...]:
    """The GPUs of `hardware.toml`."""
    return tuple(Gpu(**entry) for entry in _hardware()["gpu"])


def cpu_flop_per_s() -> float:
    """What an unnamed processor is assumed to reach."""
    return float(_hardware()["cpu"]["flop_per_s"])


@cache
def _hardware() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("hardware.toml").read_text(encoding="utf-8"))


def flops(run: Run) -> Flops:
    """FLOPs of a whole run. A backward pass has two products where the forward pass has one."""
    sizes = {"vocab_size": run.vocab_size, "sequence_tokens": run.sequence_tokens}
    student = run.tokens * forward_flops(run.student, **sizes)
    teacher = 0.0 if run.teacher is None else run.tokens * forward_flops(run.teacher, **sizes)
    return Flops(teacher, student, 2 * student, 0.0)


def kept_activation_bytes(shape: ModelShape) -> int:
    """Bytes a token that autograd keeps for the backward pass of a block under bf16 autocast. An estimate.

    Counted in a Qwen2 block of transformers with float32 weights: two norms keep their input and their product in
    float32; the inputs of q, k, v, gate and up are kept once each, cast to bf16; attention keeps q, k, v (all heads)
    and its output, and the output projection its input; the feed-forward part keeps gate, its SiLU, up and their
    product.
    """
    norms, inputs = 2 * 2 * FLOAT32 * shape.hidden_size, 5 * BFLOAT16 * shape.hidden_size
    return norms + inputs + 5 * BFLOAT16 * shape.attention + 4 * BFLOAT16 * shape.intermediate_size


def gpu_parts(run: Run) -> dict[str, int]:
    """Bytes of everything that one GPU holds if it holds all, by name; a teacher's weights come first."""
    student, teacher, tokens = run.student, run.teacher, run.micro_batch_tokens
    chunk = min(run.chunk_tokens, tokens)
    logit_bytes = (1 if teacher is None else 2) * BFLOAT16 + LOGIT_TEMPORARIES * FLOAT32
    kept = student.num_hidden_layers * kept_activation_bytes(student) + 3 * FLOAT32 * student.hidden_size
    products = BFLOAT16 * (student.block_matrices() + run.vocab_size * student.hidden_size)
    head = 2 * FLOAT32 * student.padded_vocab_size * student.hidden_size
    return {
        **({} if teacher is None else {TEACHER_WEIGHTS: BFLOAT16 * teacher.parameters()}),
        "student: weights, gradients, AdamW": TRAINED_BYTES * student.parameters(),
        "student: its matrices in bf16 for the products": products,
        "student: a micro-batch's gradients of embedding and head": head,
        f"activations kept of {tokens:,} tokens (estimate)": tokens * kept,
        f"logits of {chunk:,} tokens and the loss": chunk * run.vocab_size * logit_bytes,
        **({} if teacher is None else {"teacher: hidden states and one block's work": _teacher_work(run, teacher)}),
        "CUDA itself (estimate)": OVERHEAD_BYTES,
    }


def _teacher_work(run: Run, teacher: ModelShape) -> int:
    return run.micro_batch_tokens * BFLOAT16 * (3 * teacher.intermediate_size + 5 * teacher.hidden_size)


def gpu_bytes(run: Run) -> int:
    """Peak memory of a run on one GPU."""
    return sum(gpu_parts(run).values())


def fits(run: Run, memories: Sequence[int]) -> bool:
    """Whether a run fits in one process: the student on the first GPU, the teacher's layers over all of them.

    Args:
        run: the run.
        memories: bytes of each GPU, in the order in which programs number them.
    """
    if not memories:
        return False
    if len(memories) == 1 or run.teacher is None:
        return gpu_bytes(run) <= memories[0]
    weights = gpu_parts(run)[TEACHER_WEIGHTS]
    free = memories[0] - (gpu_bytes(run) - weights)
    # A block is never divided, so on each GPU up to one block's bytes may stay free.
    block = BFLOAT16 * run.teacher.block_matrices() // run.teacher.num_hidden_layers
    used = OVERHEAD_BYTES + _teacher_work(run, run.teacher) + block
    return free >= 0 and max(0, free - block) + sum(max(0, memory - used) for memory in memories[1:]) >= weights


def largest_micro_batch(run: Run, memories: Sequence[int]) -> int:
    """The most rows of one forward pass that fit there, up to those of a step; 0 where not even one fits."""
    counts = range(1, run.rows_per_step + 1)
    return max(takewhile(lambda count: fits(replace(run, micro_batch_rows=count), memories), counts), default=0)


def cpu_bytes(run: Run) -> int:
    """Main memory of a run without a GPU, everything in float32: weights, state, and what autograd keeps. An estimate.

    A float32 block keeps norms and projections without casts: 6 times its width, 5 times its attention's, 4 times its
    intermediate width.
    """
    student, tokens = run.student, run.micro_batch_tokens
    block = 6 * student.hidden_size + 5 * student.attention + 4 * student.intermediate_size
    teacher = 0 if run.teacher is None else run.teacher.parameters()
    chunk = 2 * min(run.chunk_tokens, tokens) * run.vocab_size
    head = 2 * student.padded_vocab_size * student.hidden_size
    kept = tokens * student.num_hidden_layers * block
    return TRAINED_BYTES * student.parameters() + FLOAT32 * (teacher + kept + chunk + head)
