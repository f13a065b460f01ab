"""`python -m bench step`: whole optimizer steps against a plain loop that is dense, padded and has its teacher online.

Both sides take the same documents, the same weights, the same precision and AdamW. The plain loop is what the released
code's step amounts to: documents padded to the longest, whole logits of every position, torch's default optimizer. The
models have random weights and the Qwen2 geometry; what they cost does not depend on what they know.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.measure import PRECISIONS, device_here, peak_above, resolve_chunk_tokens, say, turns
from bench.released import taid_loss
from common.checkpoint import head_weight, new_model
from common.cli import require_at_least_one
from common.device import Machine, cpu_name, os_name
from common.errors import UserError
from common.optim import OptimConfig, Optimizers
from common.product_rate import LargeProducts
from common.rows import read_rows
from common.tokenizer import Tokenizer
from distill.initial import qwen2_config
from distill.methods import method
from distill.on_policy import Written, pack_rollouts
from distill.student_loss import StudentLoss
from distill.teacher import OnlineTeacher

T, LEARNING_RATE, CLIP = 0.7, 1e-4, 1.0
EMBEDDED_LENGTHS = (1.0, 0.75, 0.52, 0.33)
"""Lengths of documents as shares of the longest; padded to it, 0.65 of the tokens are real."""
PRODUCTS, TINY_PRODUCTS = 32, 2
"""Large products by which the machine's rate is taken at a time: in float32 about 3 s of them on two cores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """A Qwen2 geometry with tied embeddings and heads of 64 features."""

    hidden: int
    inner: int
    layers: int
    kv_heads: int

    def config(self, rows: int, positions: int) -> dict[str, Any]:
        """The content of its config.json."""
        text = qwen2_config(
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.hidden // 64,
            num_key_value_heads=self.kv_heads,
            vocab_size=rows,
            max_position_embeddings=positions,
        )
        return json.loads(text)


STUDENT = Size(hidden=512, inner=1408, layers=6, kv_heads=2)
"""95M parameters with the Qwen vocabulary."""
TEACHER = Size(hidden=1024, inner=2816, layers=26, kv_heads=4)
"""450M parameters."""
TINY = Size(hidden=64, inner=128, layers=2, kv_heads=1)


def add_verb(verbs: Any) -> None:
    """Registers `step`."""
    verb = verbs.add_parser(
        "step", help="whole optimizer steps", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    verb.add_argument("--precision", choices=sorted(PRECISIONS), default="fp32", help="of the products, on both sides")
    verb.add_argument("--text", type=Path, metavar="FILE", help=".jsonl or .jsonl.gz with a `text`; needs --tokenizer")
    verb.add_argument("--tokenizer", type=Path, metavar="DIR", help="a tokenizer folder; needs --text")
    verb.add_argument("--documents", type=int, default=4, metavar="N", help="documents of a step")
    verb.add_argument("--max-tokens", type=int, default=1024, metavar="N", help="where longer documents are cut")
    verb.add_argument("--vocabulary", type=int, default=151_665, metavar="N", help="ids without --tokenizer")
    verb.add_argument("--chunk-tokens", type=int, metavar="N", help="of the fused loss (default: as in training)")
    verb.add_argument("--rounds", type=int, default=3, metavar="N", help="timed steps of each side")
    verb.add_argument("--tiny", action="store_true", help="models of two layers of 64, to try the command")
    verb.set_defaults(function=bench_step)


def _documents(options: argparse.Namespace) -> tuple[list[list[int]], int]:
    """Token ids of each document, and the size of the vocabulary."""
    if (options.text is None) != (options.tokenizer is None):
        raise UserError(wanted="--text and --tokenizer together, or neither", got="one of them", next_step="give both")
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
    raise UserError(
        wanted=f"{options.documents} documents of two tokens or more in {options.text}",
        got=str(len(documents)),
        next_step="give a longer file, or lower --documents",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Case:
    """What both sides share."""

    documents: list[list[int]]
    """Token ids of each."""
    size: int
    """Ids of the vocabulary."""
    teacher: Any
    """In the dtype in which it computes, frozen."""
    machine: Machine


class _Product:
    """The product's own step: real tokens in one line, the fused loss, its optimizers."""

    def __init__(self, case: "_Case", student: Any, *, chunk_tokens: int) -> None:
        machine = case.machine
        self._loss = StudentLoss(
            student,
            OnlineTeacher(case.teacher, machine),
            vocabulary=case.size,
            chunk_tokens=chunk_tokens,
            machine=machine,
        )
        self._optimizers = Optimizers(
            student, OptimConfig(learning_rate=LEARNING_RATE, gradient_clip=CLIP), machine.torch_dtype
        )
        # A prompt of one token: every further token of a document counts.
        self._real = pack_rollouts([Written(ids=tuple(ids), prompt_tokens=1) for ids in case.documents])
        self.loss = float("nan")

    def __call__(self) -> None:
        objective = method("taid").objective({"t": T})
        result = self._loss(self._real, objective, float(self._real.weights_M.sum()))
        result.loss.backward()
        self._optimizers.step(1.0)
        self.loss = float(result.loss.detach())


class _Plain:
    """The dense padded loop."""

    def __init__(self, case: "_Case", student: Any) -> None:
        self._student, self._case, documents = student, case, case.documents
        self._optimizer = torch.optim.AdamW(
            student.parameters(), lr=LEARNING_RATE, betas=OptimConfig().betas, weight_decay=0.0
        )
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
        loss = taid_loss(student_logits_NV, teacher_logits_NV, self._predicts_N, t=T)
        loss.backward()
        nn.utils.clip_grad_norm_(self._student.parameters(), CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.loss = float(loss.detach())


def bench_step(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark.

    Returns:
        `precision, real_tok_per_s, reference_real_tok_per_s, speedup, matmul_share` (of `product_flop_per_s`, the rate
        of this machine's products, counting only those that real tokens need), `extra_bytes, reference_extra_bytes`
        (beyond weights, gradients and optimizer state), `reference_real_share` (real tokens among the padded ones),
        `loss, reference_loss` (of the first step).
    """
    resolve_chunk_tokens(options)
    require_at_least_one(
        documents=options.documents,
        max_tokens=options.max_tokens - 1,
        chunk_tokens=options.chunk_tokens,
        rounds=options.rounds,
    )
    documents, size = _documents(options)
    machine, dtype = _machine(options.precision), PRECISIONS[options.precision]
    device = machine.torch_device
    sizes = (TINY, TINY) if options.tiny else (STUDENT, TEACHER)
    students = [_model(sizes[0].config(size, options.max_tokens), 0, machine) for _ in range(2)]
    teacher = _model(sizes[1].config(size, options.max_tokens), 1, machine).to(dtype).eval().requires_grad_(False)
    case = _Case(documents=documents, size=size, teacher=teacher, machine=machine)
    ours = _Product(case, students[0], chunk_tokens=options.chunk_tokens)
    plain = _Plain(case, students[1])
    losses: list[float] = []
    extra: list[int | None] = []
    for side, student in ((ours, students[0]), (plain, students[1])):
        side()
        losses.append(side.loss)
        extra.append(_extra(side, student, device))
        say(f"{type(side).__name__}: loss {losses[-1]:.5f}, extra bytes {extra[-1]}")
    products = LargeProducts(dtype, device, times=TINY_PRODUCTS if options.tiny else PRODUCTS)
    products()
    # The machine's own rate comes and goes with what else runs there, so each of our steps has it on both sides.
    seconds = turns(
        {"products before": products, "ours": ours, "products after": products, "plain": plain},
        rounds=options.rounds,
        device=device,
    )
    ours_s, plain_s = statistics.median(seconds["ours"]), statistics.median(seconds["plain"])
    num_real = sum(map(len, documents))
    operations = _operations(students[0], teacher, documents, size)
    rates = [
        2 * products.operations / (before + after)
        for before, after in zip(seconds["products before"], seconds["products after"], strict=True)
    ]
    shares = [operations / step_s / rate for step_s, rate in zip(seconds["ours"], rates, strict=True)]
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
    """Peak beyond what lies between two steps, gradients not counted."""
    peak = peak_above(side, device)
    return None if peak is None else peak - sum(parameter.nbytes for parameter in student.parameters())


def _operations(student: Any, teacher: Any, documents: Sequence[Sequence[int]], size: int) -> float:
    """Floating-point operations of the products of one step that real tokens need."""
    num_tokens = sum(map(len, documents))
    num_targets = num_tokens - len(documents)
    total = 0.0
    for model, passes in ((student, 3), (teacher, 1)):  # forward; and twice as much backward where it learns
        linear = sum(module.weight.numel() for module in model.model.modules() if isinstance(module, nn.Linear))
        head = size * head_weight(model).size(1)
        config = model.config
        pairs = sum(len(ids) ** 2 / 2 for ids in documents)
        attention = 2 * pairs * config.num_hidden_layers * config.hidden_size
        total += 2 * passes * (linear * num_tokens + head * num_targets + attention)
    return total
