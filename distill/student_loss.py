"""A student with its loss in one forward pass: batch in, weighted mean of an objective out.

Data parallelism keeps gradients in step only for what goes through a module's own forward pass, so the head and the
loss are inside it. It knows no optimizer and no method's name.
"""

from typing import TYPE_CHECKING

from torch import nn

from common.checkpoint import head_weight, hidden_states
from common.chunk_passes import InPlace, Objective, PassName
from common.device import Machine
from common.fused_linear_loss import LinearLoss, fused_linear_loss
from common.packing import VarlenBatch
from distill.methods import LossPass, pass_name
from distill.teacher import TeacherSignal

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class StudentLoss(nn.Module):
    """The loss of one micro-batch as a function of the student's parameters."""

    def __init__(
        self,
        model: "PreTrainedModel",
        teacher: TeacherSignal | None,
        *,
        vocabulary: int,
        chunk_tokens: int | None = None,
        machine: Machine,
        loss_pass: LossPass = "auto",
    ) -> None:
        """Takes the student, the teacher or None, and V, the ids that both tokenizers own; see `fused_linear_loss`."""
        super().__init__()
        self.model = model
        self._teacher, self._vocabulary = teacher, vocabulary
        self._chunk_tokens, self._machine = chunk_tokens, machine
        self._loss_pass: PassName | None = pass_name(loss_pass)

    def forward(self, real: VarlenBatch, objective: Objective | InPlace, denominator: float) -> LinearLoss:
        """The sum over the tokens, each by its weight, divided by `denominator`."""
        device = self._machine.torch_device
        return fused_linear_loss(
            hidden_states(self.model, real, self._machine),
            head_weight(self.model),
            real.targets_M.to(device),
            real.weights_M.to(device),
            objective,
            vocabulary=self._vocabulary,
            denominator=denominator,
            teacher=None if self._teacher is None else self._teacher(real),
            chunk_tokens=self._chunk_tokens,
            compute_dtype=self._machine.torch_dtype,
            loss_pass=self._loss_pass,
        )
