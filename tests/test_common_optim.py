"""Optimizers and schedule against singular values, closed forms and torch's own AdamW."""

import pytest
import torch
from errors_tiny import refuses
from torch import nn

from common.optim import OptimConfig, Optimizers, orthogonalise, schedule


def test_orthogonalising_keeps_the_singular_vectors_and_evens_the_values() -> None:
    torch.manual_seed(0)
    for shape in ((3, 24, 40), (2, 40, 24), (1, 16, 16)):
        stack = torch.randn(shape)
        result = orthogonalise(stack, iterations=5, dtype=torch.float32)
        for matrix, orthogonal in zip(stack.double(), result.double(), strict=True):
            u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
            core = u.T @ orthogonal @ vh.T
            assert (core.diagonal() > 0.5).all() and (core.diagonal() < 1.3).all()
            assert (core - core.diagonal().diag()).abs().max() < 1e-3


def test_the_schedule_warms_up_holds_and_falls_to_its_floor() -> None:
    config = OptimConfig(warmup_share=0.1, stable_share=0.4, floor_share=0.2, decay="linear")
    values = [schedule(step, 100, config) for step in range(100)]
    assert values[0] == pytest.approx(0.1) and values[9:50] == [1.0] * 41
    assert values[-1] == pytest.approx(0.2) and values[74] == pytest.approx(0.6)
    cosine = OptimConfig(warmup_share=0.0, floor_share=0.0)
    assert schedule(49, 100, cosine) == pytest.approx(0.5)


class Small(nn.Module):
    """A block matrix, an embedding, a bias: what the optimizers tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.block = nn.Linear(6, 6)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.block(self.embed(ids))


def _train(model: Small, optimizers: Optimizers, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        model(torch.randint(0, 7, (5,))).pow(2).sum().backward()
        optimizers.clip_gradients()
        optimizers.step(0.5)
        optimizers.zero_grad()


def _copy(model: Small) -> Small:
    twin = Small()
    twin.load_state_dict(model.state_dict())
    return twin


@pytest.mark.parametrize("matrices", ["adamw", "muon"])
def test_saved_state_goes_on_bit_for_bit(matrices: str) -> None:
    config = OptimConfig(matrices=matrices)  # pyright: ignore[reportArgumentType]
    model = Small()
    optimizers = Optimizers(model, config, torch.float32)
    _train(model, optimizers, range(3))
    twin = _copy(model)
    resumed = Optimizers(twin, config, torch.float32)
    with torch.no_grad():
        for name, tensor in resumed.tensors().items():
            tensor.copy_(optimizers.tensors()[name])
    _train(model, optimizers, range(3, 6))
    _train(twin, resumed, range(3, 6))
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_without_muon_the_update_is_adamw() -> None:
    torch.manual_seed(1)
    model = Small()
    twin = _copy(model)
    optimizers = Optimizers(model, OptimConfig(gradient_clip=0.0, learning_rate=1e-2), torch.float32)
    reference = torch.optim.AdamW(twin.parameters(), lr=0.5e-2, betas=(0.9, 0.95), weight_decay=0.0)
    _train(model, optimizers, range(3))
    for step in range(3):
        torch.manual_seed(step)
        twin(torch.randint(0, 7, (5,))).pow(2).sum().backward()
        reference.step()
        reference.zero_grad()
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-6)


def test_one_muon_step_moves_a_matrix_by_its_learning_rate_in_every_direction() -> None:
    model = Small()
    before = model.block.weight.detach().clone()
    optimizers = Optimizers(
        model, OptimConfig(matrices="muon", muon_learning_rate=0.1, gradient_clip=0.0), torch.float32
    )
    _train(model, optimizers, range(1))
    values = torch.linalg.svdvals(model.block.weight.detach() - before) / (0.1 * 0.5)
    assert values[0] < 1.3 and values[:3].min() > 0.5


def test_settings_out_of_range_are_refused() -> None:
    for name, value in (("learning_rate", 0.0), ("muon_learning_rate", -1.0), ("floor_share", 1.1)):
        with refuses("out-of-range", wanted=name, got=f"{value:g}"):
            OptimConfig(**{name: value})  # pyright: ignore[reportArgumentType]
    with refuses("out-of-range", wanted="warmup_plus_stable_share", got="1.4"):
        OptimConfig(warmup_share=0.7, stable_share=0.7)
