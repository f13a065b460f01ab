"""`python -m bench step`: whole optimizer steps against a plain loop that is dense, padded and has its teacher online.

Both sides take the same documents, weights, precision and AdamW. The plain loop is equivalent to the released code's
step: documents padded to the longest, whole logits of every position, torch's default optimizer. The models have random
weights and Qwen2 shapes; their cost does not depend on what they know.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.loss import released_taid_loss
from bench.measure import PRECISIONS, add_common, device_here, peak_above, resolve, say, turns
from common.checkpoint import new_model
from common.device import Machine, MatmulProbe, cpu_name, os_name
from common.errors import UserError, require_at_least
from common.launch import Distributed
from common.model_loss import ModelLoss
from common.model_shape import ModelShape, step_flops
from common.optim import OptimConfig, Optimizers
from common.rows import read_rows
from common.tokenizer import Tokenizer
from common.training import optimizer_step
from distill.initial import qwen2_config
from distill.methods import method
from distill.on_policy import Rollout, pack_rollouts
from distill.teacher import OnlineTeacher

T = 0.7
OPTIM = OptimConfig(learning_rate=1e-4, gradient_clip=1.0, warmup_share=0.0, stable_share=1.0)
"""Constant learning rate."""
EMBEDDED_LENGTHS = (1.0, 0.75, 0.52, 0.33)
"""Lengths of documents as shares of the longest; padded to it, 0.65 of the tokens are real."""
MATMULS, TINY_MATMULS = 32, 2
"""Large products of one measurement of the machine's rate: in float32 about 3 s on two cores."""
_FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
STUDENT = dict(zip(_FIELDS, (512, 1408, 6, 8, 2), strict=True))
"""95M parameters with the Qwen vocabulary."""
TEACHER = dict(zip(_FIELDS, (1024, 2816, 26, 16, 4), strict=True))
"""450M parameters."""
TINY = dict(zip(_FIELDS, (64, 128, 2, 1, 1), strict=True))


def add_verb(verbs: Any) -> None:
    """Register `step`."""
    verb = verbs.add_parser("step", help="whole optimizer steps")
    add_common(verb)
    verb.add_argument("--text", type=Path, metavar="FILE", help=".jsonl or .jsonl.gz with a `text`; needs --tokenizer")
    verb.add_argument("--tokenizer", type=Path, metavar="DIR", help="a tokenizer folder, in place of --vocabulary")
    verb.add_argument("--documents", type=int, default=4, metavar="N", help="documents of a step")
    verb.add_argument("--max-tokens", type=int, default=1024, metavar="N", help="longer documents are truncated")
    verb.add_argument("--tiny", action="store_true", help="models of two layers of 64, to try the command")
    verb.set_defaults(function=bench_step)


def _documents(options: argparse.Namespace) -> tuple[list[list[int]], int]:
    """Token ids of each document, and the size of the vocabulary."""
    if (options.text is None) != (options.tokenizer is None):
        wanted = "--text and --tokenizer together, or neither"
        raise UserError("contradiction", wanted=wanted, got="one of them", next_step="give both")
    if options.text is None:
        generator = torch.Generator().manual_seed(0)
        lengths = [
            max(2, round(EMBEDDED_LENGTHS[index % len(EMBEDDED_LENGTHS)] * options.max_tokens))
            for index in range(options.documents)
        ]
        ids = [torch.randint(0, options.vocabulary, (length,), generator=generator).tolist() for length in lengths]
        return ids, options.vocabulary
    tokenizer = Tokenizer.load(options.tokenizer)
    documents: list[list[int]] = []
    for row in read_rows([options.text], fields={"text": str}):
        encoded = tokenizer.encode(row["text"])[: options.max_tokens]
        if len(encoded) > 1:
            documents.append(encoded)
        if len(documents) == options.documents:
            return documents, tokenizer.size
    wanted = f"{options.documents} documents of two tokens or more in {options.text}"
    next_step = "give a longer file, or lower --documents"
    raise UserError("empty", wanted=wanted, got=str(len(documents)), next_step=next_step)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Case:
    """What both sides share."""

    documents: list[list[int]]
    """Token ids of each."""
    vocab_size: int
    student_config: dict[str, Any]
    teacher: Any
    """In the dtype in which it computes, frozen."""
    machine: Machine
    flops: float
    """Of the matrix products that the real tokens of one step need."""

    def student(self) -> Any:
        """A new one, always with the same weights."""
        return _model(self.student_config, 0, self.machine)


def _open(options: argparse.Namespace) -> _Case:
    documents, vocab_size = _documents(options)
    machine = _machine(options.precision)
    sizes: dict[str, Any] = {"vocab_size": vocab_size, "max_position_embeddings": options.max_tokens}
    fields = (TINY, TINY) if options.tiny else (STUDENT, TEACHER)
    student, teacher = (json.loads(qwen2_config(**one, **sizes)) for one in fields)
    lengths = [len(ids) for ids in documents]
    return _Case(
        documents=documents,
        vocab_size=vocab_size,
        student_config=student,
        teacher=_model(teacher, 1, machine).to(machine.torch_dtype).eval().requires_grad_(False),
        machine=machine,
        flops=sum(
            step_flops(ModelShape.of(config), lengths, vocab_size=vocab_size, passes=passes)
            for config, passes in ((student, 3), (teacher, 1))
        ),
    )


class _Product:
    """The product's own step: real tokens without padding, the fused loss, its optimizers."""

    def __init__(self, case: _Case, student: Any, *, chunk_tokens: int) -> None:
        machine, teacher = case.machine, OnlineTeacher(case.teacher, case.machine)
        self._loss = ModelLoss(student, teacher, vocab_size=case.vocab_size, machine=machine, chunk_tokens=chunk_tokens)
        self._optimizers = Optimizers(student, OPTIM, machine.torch_dtype)
        # A prompt of one token: every further token of a document is supervised.
        self._real = pack_rollouts([Rollout(ids=tuple(ids), prompt_tokens=1) for ids in case.documents])
        self.loss = float("nan")

    def __call__(self) -> None:
        objective, alone = method("taid").objective({"t": T}), Distributed(None)
        result = optimizer_step(
            [self._real], self._loss, objective, self._optimizers, alone, step=0, steps=1, optim=OPTIM
        )
        self.loss = result.means["loss"]


class _Plain:
    """The dense padded loop."""

    def __init__(self, case: _Case, student: Any) -> None:
        self._student, self._case, documents = student, case, case.documents
        parameters = student.parameters()
        self._optimizer = torch.optim.AdamW(parameters, lr=OPTIM.learning_rate, betas=OPTIM.betas, weight_decay=0.0)
        longest = max(map(len, documents))
        device = case.machine.torch_device
        self._tokens_BT = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in documents], device=device)
        self._mask_BT = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in documents], device=device)
        # The mask is shifted, not the logits: a token predicts the next one of its document.
        self._predicts_N = nn.functional.pad(self._mask_BT[:, 1:], (0, 1)).flatten()
        self.loss = float("nan")

    def _logits(self, model: Any) -> Tensor:
        with self._case.machine.autocast():
            logits_BTV = model(input_ids=self._tokens_BT, attention_mask=self._mask_BT, use_cache=False).logits
        return logits_BTV.flatten(0, 1)

    def __call__(self) -> None:
        student_logits_NV = self._logits(self._student)
        with torch.no_grad():
            teacher_logits_NV = self._logits(self._case.teacher)
        loss = released_taid_loss(student_logits_NV, teacher_logits_NV, self._predicts_N, t=T)
        loss.backward()
        nn.utils.clip_grad_norm_(self._student.parameters(), OPTIM.gradient_clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.loss = float(loss.detach())


def bench_step(options: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark.

    Returns:
        `precision, real_tok_per_s, reference_real_tok_per_s, speedup, matmul_share` (of `product_flop_per_s`, this
        machine's rate of matrix products, counting only those that real tokens need), `extra_bytes,
        reference_extra_bytes` (beyond weights, gradients and optimizer state), `reference_real_share` (real tokens
        among the padded ones), `loss, reference_loss` (of the first step).
    """
    resolve(options, "documents")
    require_at_least(2, **{"--max-tokens": options.max_tokens})
    case = _open(options)
    documents, machine, device = case.documents, case.machine, case.machine.torch_device
    students = case.student(), case.student()
    ours = _Product(case, students[0], chunk_tokens=options.chunk_tokens)
    plain = _Plain(case, students[1])
    losses: list[float] = []
    extra: list[int | None] = []
    for side, student in zip((ours, plain), students, strict=True):
        side()
        losses.append(side.loss)
        extra.append(_extra(side, student, device))
        say(f"{type(side).__name__}: loss {losses[-1]:.5f}, extra bytes {extra[-1]}")
    probe = MatmulProbe(machine.torch_dtype, device, times=TINY_MATMULS if options.tiny else MATMULS)
    probe()
    # The machine's rate varies with its other load, so each of our steps is measured between two probes.
    sides = {"probe before": probe, "ours": ours, "probe after": probe, "plain": plain}
    seconds = turns(sides, rounds=options.rounds, device=device)
    ours_s, plain_s = statistics.median(seconds["ours"]), statistics.median(seconds["plain"])
    num_real = sum(map(len, documents))
    around = zip(seconds["probe before"], seconds["probe after"], strict=True)
    rates = [2 * probe.flops / (before + after) for before, after in around]
    shares = [case.flops / step_s / rate for step_s, rate in zip(seconds["ours"], rates, strict=True)]
    return {
        "precision": options.precision,
        "real_tok_per_s": num_real / ours_s,
        "reference_real_tok_per_s": num_real / plain_s,
        "speedup": plain_s / ours_s,
        "matmul_share": statistics.median(shares),
        "product_flop_per_s": statistics.median(rates),
        "extra_bytes": extra[0],
        "reference_extra_bytes": extra[1],
        "reference_real_share": num_real / (len(documents) * max(map(len, documents))),
        "loss": losses[0],
        "reference_loss": losses[1],
        "device": machine.gpu or "cpu",
    }


def _machine(precision: str) -> Machine:
    device = device_here()
    return Machine(
        device=device.type,
        compute_dtype=str(PRECISIONS[precision]).removeprefix("torch."),
        cpu=cpu_name(),
        gpu=torch.cuda.get_device_name() if device.type == "cuda" else None,
        memory_bytes=0,
        os=os_name(),
        threads=torch.get_num_threads(),
    )


def _model(config: dict[str, Any], seed: int, machine: Machine) -> Any:
    torch.manual_seed(seed)
    model: Any = new_model(config)
    return model.to(machine.torch_device)


def _extra(side: Callable[[], None], student: nn.Module, device: torch.device) -> int | None:
    """Peak above what is in memory between two steps, without gradients."""
    peak = peak_above(side, device)
    return None if peak is None else peak - sum(parameter.nbytes for parameter in student.parameters())
