"""`python -m bench loss`: the fused TAID loss against the dense computation and against its bare matrix products.

The products are the four that every method needs: both sides' logits, and the gradients of hidden states and of the
student's head, by the fastest known calls (`head_product`), in the fastest number format (`product_dtype`: float32
where bfloat16 is emulated, everything cast beforehand) and into memory that is allocated already. Legend: N tokens, V
vocabulary, D and E hidden sizes of student and teacher, C tokens of a chunk.
"""

import argparse
from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor, nn

from bench.measure import PRECISIONS, add_common, device_here, free_bytes, medians, peak_above, resolve, say
from common.chunk_passes import chunks
from common.fused_linear_loss import TeacherHead, fused_linear_loss, head_product, logit_buffer, product_dtype
from distill.methods import LossPass, method, pass_name, require_kernel

T = 0.7
_PRODUCT_TOKENS = 1024
_DENSE_TENSORS_FP32 = 6
"""[N, V] float32 tensors that the dense computation holds at its peak, besides two of logits; counted in its code."""


def add_verb(verbs: Any) -> None:
    """Register `loss`."""
    verb = verbs.add_parser("loss", help="head and loss, forward and backward")
    add_common(verb)
    verb.add_argument("--tokens", type=int, default=1024, metavar="N", help="tokens of the batch")
    verb.add_argument("--hidden", type=int, default=1536, metavar="N", help="hidden size of the student")
    verb.add_argument("--teacher-hidden", type=int, default=5120, metavar="N", help="hidden size of the teacher")
    verb.add_argument("--loss-pass", choices=get_args(LossPass), default="auto", help="how the fused loss is computed")
    verb.add_argument("--no-dense", action="store_true", help="leave the dense side out")
    verb.set_defaults(function=bench_loss)


def released_taid_loss(student_logits_NV: Tensor, teacher_logits_NV: Tensor, mask_N: Tensor, *, t: float) -> Tensor:
    """TAID's loss as the released code computes it (SakanaAI/TAID@a062892 src/distil_losses), for comparison.

    The mean over unmasked tokens of the cross-entropy towards the intermediate distribution: whole logits of every
    position on both sides, softmax and log-softmax in float32, infinite logits zeroed, and autograd for the rest. Its
    copies of shifted logits are left out, which is to its advantage.
    """
    mixed_NV = (1.0 - t) * student_logits_NV.detach() + t * teacher_logits_NV
    target_NV = torch.softmax(mixed_NV, dim=-1, dtype=torch.float32)
    log_q_NV = torch.log_softmax(student_logits_NV, dim=-1, dtype=torch.float32)
    products_NV = torch.masked_fill(target_NV * log_q_NV, torch.isinf(student_logits_NV), 0.0)
    return -(products_NV.sum(-1) * mask_N).sum() / mask_N.sum()


class _Case:
    """Random inputs and the three sides."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = device_here()
        self.dtype = PRECISIONS[options.precision]
        self.vocabulary, self.chunk_tokens = options.vocabulary, options.chunk_tokens
        self.loss_pass: LossPass = options.loss_pass
        generator = torch.Generator(self.device).manual_seed(0)

        def random(rows: int, columns: int, scale: float) -> Tensor:
            return torch.randn(rows, columns, generator=generator, device=self.device).mul_(scale)

        tokens = options.tokens
        self.hidden_ND = nn.Parameter(random(tokens, options.hidden, 1.0))
        # Logits with a standard deviation of 2, so that softmax is neither flat nor one-hot.
        self.weight_VD = nn.Parameter(random(options.vocabulary, options.hidden, 2.0 / options.hidden**0.5))
        teacher_hidden_NE = random(tokens, options.teacher_hidden, 1.0).to(self.dtype)
        teacher_head_WE = random(options.vocabulary, options.teacher_hidden, 2.0 / options.teacher_hidden**0.5)
        self.teacher = TeacherHead(hidden_NE=teacher_hidden_NE, weight_WE=teacher_head_WE.to(self.dtype))
        self.targets_N = torch.randint(0, options.vocabulary, (tokens,), generator=generator, device=self.device)
        self.weights_N = torch.ones(tokens, device=self.device)
        self._buffers: dict[str, Tensor] = {}

    @property
    def gradient_bytes(self) -> int:
        """Of the hidden states and of the student's head."""
        return self.hidden_ND.nbytes + self.weight_VD.nbytes

    def clear(self) -> None:
        self.hidden_ND.grad = self.weight_VD.grad = None

    def fused(self) -> None:
        self.clear()
        fused_linear_loss(
            self.hidden_ND,
            self.weight_VD,
            self.targets_N,
            self.weights_N,
            method("taid").kernel({"t": T}) if self.loss_pass == "triton" else method("taid").objective({"t": T}),
            vocab_size=self.vocabulary,
            denominator=float(len(self.targets_N)),
            teacher=self.teacher,
            chunk_tokens=self.chunk_tokens,
            compute_dtype=self.dtype,
            loss_pass=pass_name(self.loss_pass),
        ).loss.backward()

    def dense(self) -> None:
        self.clear()
        student_logits_NV = nn.functional.linear(self.hidden_ND.to(self.dtype), self.weight_VD.to(self.dtype))
        with torch.no_grad():
            teacher_logits_NV = nn.functional.linear(self.teacher.hidden_NE, self.teacher.weight_WE)
        released_taid_loss(student_logits_NV, teacher_logits_NV, self.weights_N, t=T).backward()

    def prepare_matmuls(self) -> None:
        """The cast inputs and the output memory of the bare products, which then only multiply."""
        rows, product = min(_PRODUCT_TOKENS, len(self.hidden_ND)), product_dtype(self.dtype, self.device)
        head_VD = self.weight_VD.detach().to(self.dtype).to(product)
        self._buffers = {
            "hidden": self.hidden_ND.detach().to(self.dtype).to(product),
            "head": head_VD,
            "teacher_hidden": self.teacher.hidden_NE.to(product),
            "teacher_head": self.teacher.weight_WE.to(product),
            "student": logit_buffer(rows, self.vocabulary, like=head_VD).fill_(1.0),
            "teacher": logit_buffer(rows, self.vocabulary, like=head_VD).fill_(1.0),
            "grad_hidden": torch.ones(rows, self.hidden_ND.size(1), dtype=product, device=self.device),
            "grad_head": torch.ones_like(self.weight_VD, dtype=product),
        }

    def matmuls(self) -> None:
        buffers = self._buffers
        for part in chunks(len(self.hidden_ND), _PRODUCT_TOKENS):
            hidden_CD, head_VD = buffers["hidden"][part], buffers["head"]
            student_CV, teacher_CV = (buffers[side][: len(hidden_CD)] for side in ("student", "teacher"))
            head_product(buffers["teacher_hidden"][part], buffers["teacher_head"], teacher_CV)
            head_product(hidden_CD, head_VD, student_CV)
            torch.mm(student_CV, head_VD, out=buffers["grad_hidden"][: len(hidden_CD)])
            buffers["grad_head"].addmm_(student_CV.t(), hidden_CD, beta=0.0 if part.start == 0 else 1.0)


def bench_loss(options: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark.

    Returns:
        `precision, tokens, fused_s, dense_s, matmul_s, fused_over_matmul, dense_over_fused, fused_extra_bytes,
        dense_extra_bytes, max_gradient_difference` (largest difference to the dense gradients, as a share of their
        largest entry); what did not fit is null, with `dense_reason`.
    """
    resolve(options, "tokens", "hidden", "teacher_hidden")
    require_kernel(options.loss_pass, device_here().type)
    case = _Case(options)
    reason = "left out by --no-dense" if options.no_dense else _too_large(options, case)
    fused_bytes, gradients = _peak(case, case.fused), (case.hidden_ND.grad, case.weight_VD.grad)
    dense_bytes, difference = None, None
    if reason is None:
        dense_bytes = _peak(case, case.dense)
        dense_gradients = (case.hidden_ND.grad, case.weight_VD.grad)
        difference = max(_difference(mine, other) for mine, other in zip(gradients, dense_gradients, strict=True))
        del dense_gradients
    del gradients
    case.clear()
    case.prepare_matmuls()
    case.matmuls()
    sides: dict[str, Callable[[], object]] = {"fused": case.fused, "matmuls": case.matmuls}
    if reason is None:
        sides["dense"] = case.dense
    seconds = medians(sides, rounds=options.rounds, device=case.device)
    dense_s = seconds.get("dense")
    return {
        "precision": options.precision,
        "tokens": options.tokens,
        "fused_s": seconds["fused"],
        "dense_s": dense_s,
        "matmul_s": seconds["matmuls"],
        "fused_over_matmul": seconds["fused"] / seconds["matmuls"],
        "dense_over_fused": None if dense_s is None else dense_s / seconds["fused"],
        "fused_extra_bytes": fused_bytes,
        "dense_extra_bytes": dense_bytes,
        "max_gradient_difference": difference,
        **({} if reason is None else {"dense_reason": reason}),
        "chunk_tokens": options.chunk_tokens,
        "loss_pass": options.loss_pass,
        "device": torch.cuda.get_device_name() if case.device.type == "cuda" else "cpu",
    }


def _peak(case: _Case, side: Callable[[], None]) -> int | None:
    """Extra bytes of one side: its peak above the inputs and the returned gradients."""
    case.clear()
    peak = peak_above(side, case.device)
    extra = None if peak is None else peak - case.gradient_bytes
    say(f"{side.__name__}: extra memory {'not known' if extra is None else f'{extra / 1e9:.3f} GB'}")
    return extra


def _difference(mine: Tensor | None, other: Tensor | None) -> float:
    assert mine is not None and other is not None
    return float((mine - other).abs().max() / other.abs().max())


def _too_large(options: argparse.Namespace, case: _Case) -> str | None:
    """Why the dense side is left out, or None."""
    logit_bytes = 4 * _DENSE_TENSORS_FP32 + 2 * case.dtype.itemsize
    needed = logit_bytes * options.tokens * options.vocabulary + case.gradient_bytes
    free = free_bytes(case.device)
    if free is None or needed <= 0.9 * free:
        return None
    return f"about {needed / 1e9:.0f} GB for whole logits, {free / 1e9:.0f} GB free"
