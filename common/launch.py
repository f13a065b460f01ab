"""The processes that train one model together: which rows are whose, sums over all of them, gradients in step.

One process is a team of one, and nothing is loaded or sent for it. Of more, which the environment names as torchrun
does, accelerate opens the process group and keeps the models' gradients equal. It knows no loss and no stage.
"""

import contextlib
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from common.errors import UserError

if TYPE_CHECKING:
    # torch takes seconds to load: whoever only reads a finished build does without it.
    from accelerate import Accelerator
    from torch import nn


def num_processes() -> int:
    """How many processes the environment names for this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class Team:
    """This process among those of its run.

    Attributes:
        rank: 0 to size - 1; the first writes what all share.
        size: number of processes.
    """

    def __init__(self, device: str) -> None:
        """Joins the processes that the environment names (RANK, WORLD_SIZE), or works alone."""
        self._accelerator = _accelerator(device) if num_processes() > 1 else None
        self.rank = self._accelerator.process_index if self._accelerator else 0
        self.size = self._accelerator.num_processes if self._accelerator else 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def own(self, rows: Sequence[int]) -> list[int]:
        """This process's share of the rows of one optimizer step; all shares together are all rows, each once.

        Raises:
            UserError: fewer rows than processes.
        """
        if len(rows) < self.size:
            raise UserError(
                wanted=f"at least {self.size} rows a step, one for each process",
                got=str(len(rows)),
                next_step="raise rows_per_step or start fewer processes",
            )
        return list(rows[self.rank :: self.size])

    def totals(self, values: Mapping[str, float]) -> dict[str, float]:
        """Each value summed over all processes, in float64; every process names the same values."""
        if self._accelerator is None:
            return dict(values)
        import torch

        device = self._accelerator.device
        summed = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
        reduced: Any = self._accelerator.reduce(summed, reduction="sum")
        return dict(zip(values, reduced.tolist(), strict=True))

    def in_step(self, module: "nn.Module") -> "nn.Module":
        """The module with its parameters' gradients averaged over all processes in each backward pass."""
        return module if self._accelerator is None else self._accelerator.prepare_model(module)

    def accumulating(self, module: "nn.Module") -> AbstractContextManager[Any]:
        """The context of a backward pass that is not the last of its optimizer step: nothing is sent yet."""
        return contextlib.nullcontext() if self._accelerator is None else self._accelerator.no_sync(module)

    def wait(self) -> None:
        """Until every process is here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()


def _accelerator(device: str) -> "Accelerator":
    from accelerate import Accelerator

    # Precision is the machine's, and autocast the model's alone: none from accelerate's own environment.
    return Accelerator(cpu=device == "cpu", mixed_precision="no")
