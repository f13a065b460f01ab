"""Training state on disk: the last two states, what a damaged one costs, the best weights beside them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from errors_tiny import refuses
from torch import nn

from common.optim import OptimConfig, Optimizers
from common.training_state import CheckpointManager, TrainingState, resume_training, save_training


class _Run:
    """A model of one weight that counts its steps, and its states."""

    def __init__(self, folder: Path) -> None:
        self.model = nn.Linear(4, 4, bias=False)
        optimizers = Optimizers(self.model, OptimConfig(), torch.float32)  # pyright: ignore[reportArgumentType]
        self.states = CheckpointManager(folder, self.model, optimizers)

    @property
    def weight(self) -> float:
        """The value that all entries have."""
        return float(self.model.weight.detach().unique())

    def train(self, *steps: int, losses: dict[int, float]) -> None:
        for step in steps:
            nn.init.constant_(self.model.weight, step)
            if step in losses:
                self.states.keep_if_best(step, losses[step])
            self.states.save(step, {"tokens": 10 * step})


def _spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(0, 0))  # as after a copy: checksums are kept by size and time


def _tensors(scratch: Path, step: int) -> Path:
    (path,) = (scratch / f"step_{step:06d}" / "tensors").glob("*.distcp")
    return path


def _state(scratch: Path, step: int) -> Path:
    return scratch / f"step_{step:06d}" / "state.json"


def _best(scratch: Path, step: int) -> Path:
    return scratch / f"best_{step:06d}.safetensors"


def test_the_last_two_states_are_kept_with_the_best_weights_that_they_name(tmp_path: Path) -> None:
    run = _Run(tmp_path)
    run.train(1, 2, 3, 4, losses={1: 3.0, 2: 2.0, 3: 2.5, 4: 1.0})
    names = sorted(path.name for path in (tmp_path / "scratch").iterdir())
    assert names == ["best_000002.safetensors", "best_000004.safetensors", "step_000003", "step_000004"]
    later = _Run(tmp_path)
    state = later.states.resume()
    assert state is not None and (state.step, state.values["tokens"], later.states.best_step) == (4, 40, 4)
    assert later.weight == 4


@pytest.mark.parametrize("spoilt", [_tensors, _state, _best])
def test_a_damaged_state_is_said_and_the_run_goes_on_from_the_one_before(
    tmp_path: Path, spoilt: Callable[[Path, int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _Run(tmp_path).train(1, 2, 3, losses={2: 2.0, 3: 1.0})
    _spoil(spoilt(tmp_path / "scratch", 3))
    later = _Run(tmp_path)
    state = later.states.resume()
    assert state is not None and (state.step, later.states.best_step, later.states.best_loss) == (2, 2, 2.0)
    assert "step_000003 has other checksums" in (said := capsys.readouterr().out) and "from step 2" in said
    assert later.weight == 2
    later.states.restore_best()
    later.train(3, losses={3: 1.0})
    assert _Run(tmp_path).states.resume() == TrainingState(
        step=3, values={"tokens": 30, "best_step": 3, "best_loss": 1.0, "best_sha256": later.states._best_sha256}
    )


def test_a_run_whose_states_are_all_damaged_never_begins_anew_by_itself(tmp_path: Path) -> None:
    _Run(tmp_path).train(1, 2, losses={1: 1.0})
    for step in (1, 2):
        _spoil(_tensors(tmp_path / "scratch", step))
    with refuses("damaged", got="step_000002, step_000001", next_step="begin at step 0"):
        _Run(tmp_path).states.resume()
    assert len(list((tmp_path / "scratch").glob("step_*"))) == 2


def test_states_of_more_than_six_digits_are_in_order(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000):
        save_training(tmp_path, {"weight": torch.full((2,), float(step))}, TrainingState(step=step, values={}))
    found = {"weight": torch.zeros(2)}
    assert resume_training(tmp_path, found) == (TrainingState(step=1_000_000, values={}), [])
    assert found["weight"].tolist() == [1e6, 1e6]
