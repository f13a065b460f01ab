"""What a machine's own matrix products reach: the yardstick for the time of a step."""

import torch
from torch import Tensor

_SIDES = {"cuda": 8192, "cpu": 2048}
"""Large enough that starting a product costs nothing beside it."""


class LargeProducts:
    """A few products of square matrices, computed at each call; on a GPU the call does not wait for them.

    Attributes:
        operations: floating-point operations of one call.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device, *, side: int | None = None, times: int = 8) -> None:
        """Takes the number format and the device; `side` None takes what suits the device."""
        side = _SIDES[device.type] if side is None else side
        # Random numbers: a GPU draws less power on equal ones, and then runs faster than it ever does in training.
        generator = torch.Generator(device).manual_seed(0)
        self._a, self._b = (torch.randn(side, side, generator=generator, device=device).to(dtype) for _ in range(2))
        self._out, self._times = torch.empty_like(self._a), times
        self.operations = 2 * side**3 * times

    def __call__(self) -> Tensor:
        for _ in range(self._times):
            torch.mm(self._a, self._b, out=self._out)
        return self._out
