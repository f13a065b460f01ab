"""The compiled pass against the eager one: the same values, and no new compilation for other numbers."""

import shutil

import pytest
import torch
import torch._dynamo.utils as dynamo_utils
from objective_references import arguments
from torch import Tensor

from common import chunk_passes
from common.chunk_passes import ChunkValues, InPlace, Sums, evaluate
from distill.methods import METHODS, method

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


def chunk(seed: int, rows: int, *, vocabulary: int = 61, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Student's and teacher's logits, targets, weights."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(rows, vocabulary, generator=generator) for _ in range(2))
    return (
        student,
        teacher,
        torch.randint(0, vocabulary, (rows,), generator=generator),
        torch.rand(rows, generator=generator),
    )


def run(name: str, loss_pass: chunk_passes.PassName, given: dict[str, float], *inputs: Tensor) -> tuple[Tensor, Sums]:
    """Gradient and sums."""
    student, teacher, targets, weights = inputs
    sums, logit_sums = Sums(weights), Sums(weights)
    gradient = evaluate(
        method(name).objective(given),
        student.clone(),
        teacher if method(name).needs_teacher else None,
        targets,
        weights,
        denominator=float(weights.sum()),
        sums=sums,
        logit_sums=logit_sums,
        name=loss_pass,
    )
    sums.update(logit_sums)
    return gradient, sums


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", ["taid", "taid_labels", "cross_entropy", "ctkd"])
@torch.no_grad()
def test_compiled_is_eager(name: str) -> None:
    torch._dynamo.reset()
    dynamo_utils.counters.clear()
    for step, rows in enumerate((7, 7, 5, 6, 7)):
        given = {key: value + 0.05 * step for key, value in arguments(name).items()}
        inputs = chunk(step, rows, scale=30.0 if step == 3 else 3.0)
        expected, expected_sums = run(name, "blocks", given, *inputs)
        found, sums = run(name, "compiled", given, *inputs)
        assert (found - expected).abs().max() <= 1e-6 * float(expected.abs().max())
        # Logits themselves are summed to see whether they are finite: an absolute rounding of large numbers.
        assert {key: float(value) for key, value in sums.items()} == pytest.approx(
            {key: float(value) for key, value in expected_sums.items()}, rel=1e-5, abs=1e-2
        )
        assert float(sums[chunk_passes.LOSS]) == pytest.approx(float(expected_sums[chunk_passes.LOSS]), rel=1e-5)
    # At first, for any t, for any number of rows: after that, never.
    assert dynamo_utils.counters["stats"]["unique_graphs"] <= 3


def test_an_objective_in_place_gets_the_whole_chunk_and_its_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_passes, "_BLOCK_LOGITS", 1)
    seen: list[int] = []

    def fill(student: Tensor, teacher: Tensor | None, targets: Tensor, scale: Tensor) -> ChunkValues:
        seen.append(len(student))
        total = student.sum(-1)
        student.copy_(scale[:, None].expand_as(student))
        return ChunkValues(torch.full_like(scale, 2.0), {"own": torch.ones_like(scale)}, total, None)

    student, _, targets, weights = chunk(0, 9)
    sums, logit_sums = Sums(weights), Sums(weights)
    gradient = evaluate(
        InPlace(run=fill),
        student.clone(),
        None,
        targets,
        weights,
        denominator=4.0,
        sums=sums,
        logit_sums=logit_sums,
        name="blocks",
    )
    assert seen == [9] and torch.equal(gradient[:, 0], weights / 4.0)
    assert float(sums[chunk_passes.LOSS]) == pytest.approx(2 * float(weights.sum()))
    assert float(sums["own"]) == pytest.approx(float(weights.sum())) and set(logit_sums) == {"student"}


def test_what_a_device_gets() -> None:
    assert chunk_passes.default_pass(torch.device("cpu")) == "blocks"
    assert chunk_passes.default_pass(torch.device("mps")) == "whole"


def test_without_a_compiler_the_loss_goes_on_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: object) -> object:
        raise RuntimeError("Failed to find C compiler\nmore")

    monkeypatch.setattr(torch, "compile", broken)
    chunk_passes._compiler_works.cache_clear()
    with pytest.warns(UserWarning, match="not compiled and so slower: Failed to find C compiler$"):
        assert not chunk_passes._compiler_works(torch.device("cpu"))
    chunk_passes._compiler_works.cache_clear()


def test_every_method_has_names_for_its_sums_without_tokens() -> None:
    """So that processes without a valid token add up the same values as the others."""
    for name in METHODS:
        _, sums = run(name, "whole", arguments(name), *chunk(0, 3))
        _, none = run(name, "whole", arguments(name), *(one[:0] for one in chunk(0, 3)[:3]), torch.ones(0))
        assert set(none) == set(sums)
