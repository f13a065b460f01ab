"""The processes that train one model together: shares of the rows, sums over all processes, equal gradients.

One process works alone and loads nothing for it. Several, which the environment names as torchrun does, use
accelerate: it opens the process group and keeps the gradients equal.
"""

import contextlib
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from common.errors import require_at_least

if TYPE_CHECKING:
    # torch takes seconds to load, and a command that only reads a finished build does not need it.
    from torch import nn


def num_processes() -> int:
    """The number of processes that the environment names for this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class Distributed:
    """This process among those of its run.

    Attributes:
        rank: 0 to size - 1.
        size: number of processes.
    """

    def __init__(self, device: str | None) -> None:
        """Join the processes that the environment names (RANK, WORLD_SIZE); a device of None always works alone."""
        self._accelerator = None
        if device is not None and num_processes() > 1:
            from accelerate import Accelerator

            # The machine chooses the precision, and only the model autocasts: accelerate's own environment is ignored.
            self._accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")
        self.rank = self._accelerator.process_index if self._accelerator else 0
        self.size = self._accelerator.num_processes if self._accelerator else 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files that all processes share."""
        return self.rank == 0

    def shard(self, rows: Sequence[int]) -> list[int]:
        """This process's share of the rows of one optimizer step; UserError for fewer rows than processes."""
        require_at_least(self.size, rows_per_step=len(rows), next_step="raise it, or start fewer processes")
        return list(rows[self.rank :: self.size])

    def all_reduce_sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Each value summed over all processes, in float64; every process passes the same names."""
        if self._accelerator is None:
            return dict(values)
        import torch

        summed = torch.tensor(list(values.values()), dtype=torch.float64, device=self._accelerator.device)
        reduced: Any = self._accelerator.reduce(summed, reduction="sum")
        return dict(zip(values, reduced.tolist(), strict=True))

    def wrap(self, module: "nn.Module") -> "nn.Module":
        """The module, with its parameters' gradients averaged over all processes in each backward pass."""
        return module if self._accelerator is None else self._accelerator.prepare_model(module)

    def accumulating(self, module: "nn.Module", *, last: bool) -> AbstractContextManager[Any]:
        """The context of one backward pass of an optimizer step: gradients are sent in the last one only."""
        if last or self._accelerator is None:
            return contextlib.nullcontext()
        return self._accelerator.no_sync(module)

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()
