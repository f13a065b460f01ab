"""The state of a training run on disk, from which a start after a kill goes on as if the run had never stopped.

Weights, optimizer and counters are written by `torch.distributed.checkpoint` into `scratch/` of the stage's own folder,
renamed when complete, and loaded only after their checksums match. Independent of losses and stages.
"""

import json
import math
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.disk import flush_one, flush_to_disk, replace_text, sha256_of
from common.errors import damaged
from common.optim import Optimizers
from common.store import say

_KEPT_STATES = 2
"""Training states on the disk: the last one, and one to go back to if that is damaged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingState:
    """With the tensors, everything that a loop needs to go on as if it had never stopped."""

    step: int
    """Optimizer steps done."""
    values: dict[str, Any]
    """Counters and controller state, JSON."""


class CheckpointManager:
    """Training state and best weights of one loop, in `scratch/` of the stage's folder.

    Attributes:
        best_step: optimizer steps of the best weights by validation; -1 before the first validation.
        best_loss: their validation loss.
    """

    def __init__(self, folder: Path, model: nn.Module, optimizers: Optimizers, *, writes: bool = True) -> None:
        """Of several processes one `writes`; all of them resume from what it wrote."""
        self._scratch = folder / "scratch"
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._model, self._optimizers, self._writes = model, optimizers, writes
        self.best_step, self.best_loss, self._best_sha256 = -1, math.inf, ""

    def _tensors(self) -> dict[str, Tensor]:
        weights = {f"model/{name}": p for name, p in self._model.named_parameters()}
        return {**weights, **{f"optimizer/{k}": v for k, v in self._optimizers.tensors().items()}}

    def resume(self) -> TrainingState | None:
        """Load the newest state that is whole into model and optimizers; None at a fresh start.

        UserError ("damaged") where there are states and none is whole.
        """
        state, passed_over = resume_training(self._scratch, self._tensors())
        if state is None:
            return None
        if passed_over and self._writes:
            lost = f"{', '.join(passed_over)} has other checksums than were written"
            say(f"warning: {lost}; the run goes on from step {state.step}")
        best_loss = state.values["best_loss"]
        self.best_step, self._best_sha256 = state.values["best_step"], state.values["best_sha256"]
        self.best_loss = math.inf if best_loss is None else best_loss
        return state

    def save(self, step: int, values: dict[str, Any]) -> None:
        """Write the state after `step` optimizer steps."""
        if self._writes:
            best = {
                "best_step": self.best_step,
                "best_loss": None if math.isinf(self.best_loss) else self.best_loss,
                "best_sha256": self._best_sha256,
            }
            save_training(self._scratch, self._tensors(), TrainingState(step=step, values={**values, **best}))

    def keep_if_best(self, step: int, validation_loss: float) -> None:
        """Keep the weights if their validation loss is the lowest so far."""
        if validation_loss < self.best_loss:
            self.best_step, self.best_loss = step, validation_loss
            if self._writes:
                best = _best_file(self._scratch, step)
                partial = best.with_suffix(".partial")
                save_file({name: p.detach().contiguous() for name, p in self._model.named_parameters()}, partial)
                self._best_sha256 = sha256_of(partial)
                flush_one(partial)
                partial.rename(best)

    @torch.no_grad()
    def restore_best(self) -> None:
        """Put the best weights back into the model."""
        if self.best_step >= 0:
            best = load_file(_best_file(self._scratch, self.best_step))
            for name, parameter in self._model.named_parameters():
                parameter.copy_(best[name])


def save_training(scratch: Path, tensors: dict[str, Tensor], state: TrainingState) -> None:
    """Write `scratch/step_<n>/` completely or not at all, then delete all but the newest `_KEPT_STATES`.

    The best weights that no kept state names go as well.
    """
    from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

    target = scratch / f"step_{state.step:06d}"
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_tensors(tensors, checkpoint_id=partial / "tensors", no_dist=True)
    record = {"step": state.step, "values": state.values, "checksums": _checksums(partial)}
    flush_to_disk(partial)
    replace_text(partial / "state.json", json.dumps(record))
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    flush_one(scratch)
    states = _states(scratch)
    named = {_best_file(scratch, _record(folder)["values"].get("best_step", -1)) for folder in states[:_KEPT_STATES]}
    for path in (*states[_KEPT_STATES:], *scratch.glob("step_*.partial")):
        shutil.rmtree(path)
    for path in {*scratch.glob("best_*")} - named:
        path.unlink()


def resume_training(scratch: Path, tensors: dict[str, Tensor]) -> tuple[TrainingState | None, list[str]]:
    """Load the newest state that is whole into `tensors`, in place.

    Returns:
        the state, None where there is none at all, and the names of newer ones that are damaged.

    Raises:
        UserError ("damaged"): there are states, and none is whole. A run never starts again at step 0 by itself.
    """
    from torch.distributed.checkpoint.state_dict_loader import load as load_tensors

    passed_over: list[str] = []
    for folder in _states(scratch):
        if (state := _whole_state(folder)) is None:
            passed_over.append(folder.name)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_tensors(tensors, checkpoint_id=folder / "tensors", no_dist=True)
        return state, passed_over
    if passed_over:
        what, got = f"a whole training state in {scratch}", f"other checksums in {', '.join(passed_over)}"
        raise damaged(what, got, next_step="copy the folder again, or delete it to begin at step 0")
    return None, []


def _states(scratch: Path) -> list[Path]:
    """The folders of training states, the newest first."""
    found = {int(path.name[5:]): path for path in scratch.glob("step_*") if path.name[5:].isdigit()}
    return [found[step] for step in sorted(found, reverse=True)]


def _whole_state(folder: Path) -> TrainingState | None:
    """The state in a folder whose files, and whose best weights, have the checksums of its record; else None."""
    try:
        record = _record(folder)
        state = TrainingState(step=record["step"], values=record["values"])
        best_step, best_sum = state.values.get("best_step", -1), state.values.get("best_sha256")
        best = _best_file(folder.parent, best_step)
        is_whole = _checksums(folder) == record["checksums"] and (best_step < 0 or sha256_of(best) == best_sum)
    except (OSError, ValueError, KeyError):
        return None
    return state if is_whole else None


def _record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "state.json").read_text(encoding="utf-8"))


def _best_file(scratch: Path, step: int) -> Path:
    return scratch / f"best_{step:06d}.safetensors"


def _checksums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "state.json"
    }
