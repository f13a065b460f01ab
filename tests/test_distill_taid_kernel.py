"""TAID's Triton kernel: interpreted against the torch objective, and compiled for GPUs that are not here."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from errors_tiny import refuses

from distill.methods import method, require_kernel
from distill.train import DistillConfig

ROOT = Path(__file__).parents[1]
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed (it comes with CUDA)")

INTERPRETED = """
import json, torch
from common.chunk_passes import _run
from distill.methods import method
generator = torch.Generator().manual_seed(0)
worst = {}
for vocabulary, pad in ((50, 14), (2048, 0), (5000, 56)):
    for scale in (0.3, 2.0, 60.0):
        for t in (0.0, 0.001, 0.4, 1.0):
            student, teacher = (
                (torch.randn(3, vocabulary + pad, generator=generator) * scale)[:, :vocabulary] for _ in range(2)
            )
            weights, targets = torch.rand(3, generator=generator), torch.zeros(3, dtype=torch.long)
            name = "forward_kl" if t == 1.0 else "taid"
            arguments = {} if t == 1.0 else {"t": t}
            one, other = student.clone(), student.clone()
            expected = _run(method(name).objective(arguments), one, teacher, targets, weights)
            found = method(name).kernel(arguments).run(other, teacher, targets, weights)
            (extra,) = expected.extras
            pairs = {
                "gradient": (other, one),
                "loss": (found.loss_C, expected.loss_C),
                "student sum": (found.student_sum_C, expected.student_sum_C),
                "teacher sum": (found.teacher_sum_C, expected.teacher_sum_C),
            }
            if t not in (0.0, 0.001):  # there the KL is a rounding of larger numbers
                pairs["extra"] = (found.extras[extra], expected.extras[extra])
            for what, (mine, theirs) in pairs.items():
                error = float((mine - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30))
                worst[what] = max(worst.get(what, 0.0), error)
empty = method("taid").kernel({"t": 0.5}).run(
    torch.zeros(0, 7), torch.zeros(0, 7), torch.zeros(0, dtype=torch.long), torch.zeros(0)
)
assert empty.loss_C.numel() == 0 and set(empty.extras) == {"kl"}
print(json.dumps(worst))
"""

COMPILED = """
import json
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from distill import taid_kernel
numbers = {"scale_ptr": "*fp32", "sums_ptr": "*fp32", "t": "fp32", "vocabulary": "i32", "student_stride": "i32",
           "teacher_stride": "i32", "largest_exponent": "fp32", "SUMS": "constexpr", "BLOCK": "constexpr"}
made = {}
for capability in (80, 90):
    for logits in ("*bf16", "*fp32"):
        source = ASTSource(
            fn=taid_kernel._token,
            signature={"student_ptr": logits, "teacher_ptr": logits} | numbers,
            constexprs={"SUMS": taid_kernel._SUMS, "BLOCK": taid_kernel._BLOCK},
        )
        kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
        made[f"{capability} {logits}"] = [len(kernel.asm["cubin"]), kernel.asm["ptx"].count("ld.local")]
print(json.dumps(made))
"""


def _answer(code: str, **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_triton
def test_the_kernel_is_the_objective() -> None:
    worst = _answer(INTERPRETED, TRITON_INTERPRET="1")
    assert set(worst) == {"gradient", "loss", "student sum", "teacher sum", "extra"}
    assert all(error <= 1e-5 for error in worst.values()), worst


@needs_triton
def test_the_kernel_compiles_for_gpus_and_stays_in_registers(tmp_path: Path) -> None:
    made = _answer(COMPILED, TRITON_CACHE_DIR=str(tmp_path))
    assert len(made) == 4 and all(size > 0 and spilled == 0 for size, spilled in made.values())


def test_a_machine_that_cannot_run_it_is_told_first() -> None:
    require_kernel("auto", "cpu")
    with refuses("unsupported", wanted="loss pass triton", got="cpu"):
        require_kernel("triton", "cpu")


def test_only_what_it_computes_is_taken() -> None:
    assert {name for name in ("taid", "forward_kl", "reverse_kl", "taid_labels") if method(name).has_kernel} == {
        "taid",
        "forward_kl",
    }
    assert DistillConfig(method="taid", loss_pass="triton").loss_pass == "triton"
    for settings in ({"method": "reverse_kl"}, {"method": "taid", "lm_weight": 0.1}, {"method": "cross_entropy"}):
        with refuses("contradiction", wanted="loss pass triton", got=settings["method"]):
            DistillConfig(loss_pass="triton", **settings)  # pyright: ignore[reportArgumentType]
