"""A model with its loss in one forward pass: batch in, weighted mean of an objective out.

Data parallelism averages gradients only for what goes through a module's own forward pass, so the output head and the
loss are inside it. Independent of optimizers and of the methods' names.
"""

from typing import TYPE_CHECKING, Protocol

from torch import nn

from common.checkpoint import head_weight, hidden_states
from common.chunk_passes import InPlace, Objective, PassName
from common.device import Machine
from common.fused_linear_loss import LinearLoss, TeacherHead, fused_linear_loss
from common.packing import VarlenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TeacherSignal(Protocol):
    """The teacher's output for one batch."""

    def __call__(self, real: VarlenBatch) -> TeacherHead:
        """Hidden states [M, E] of every token, and the teacher's output head."""
        ...


class ModelLoss(nn.Module):
    """The loss of one micro-batch as a function of the model's parameters."""

    def __init__(
        self,
        model: "PreTrainedModel",
        teacher: TeacherSignal | None,
        *,
        vocab_size: int,
        machine: Machine,
        chunk_tokens: int | None = None,
        loss_pass: PassName | None = None,
    ) -> None:
        """Take the model, the teacher or None, and the ids that both tokenizers share; see `fused_linear_loss`."""
        super().__init__()
        self.model, self.machine, self.vocab_size = model, machine, vocab_size
        self._teacher, self._chunk_tokens = teacher, chunk_tokens
        self._loss_pass: PassName | None = loss_pass

    def forward(self, real: VarlenBatch, objective: Objective | InPlace, denominator: float) -> LinearLoss:
        """The weighted sum over the tokens, divided by `denominator`."""
        device = self.machine.torch_device
        return fused_linear_loss(
            hidden_states(self.model, real, self.machine),
            head_weight(self.model),
            real.targets_M.to(device),
            real.weights_M.to(device),
            objective,
            vocab_size=self.vocab_size,
            denominator=denominator,
            teacher=None if self._teacher is None else self._teacher(real),
            chunk_tokens=self._chunk_tokens,
            compute_dtype=self.machine.torch_dtype,
            loss_pass=self._loss_pass,
        )
