"""The frozen teacher: the `TeacherSignal` that a method needs.

The online teacher computes its final hidden states for each batch; logits are made only chunk by chunk, in
`common.fused_linear_loss`.
"""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from common.checkpoint import head_weight, hidden_states, load_model
from common.device import Machine
from common.errors import UserError
from common.fused_linear_loss import TeacherHead
from common.packing import VarlenBatch
from common.tokenizer import Tokenizer
from distill.methods import method

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class OnlineTeacher:
    """A frozen model that runs on each batch."""

    def __init__(self, model: "PreTrainedModel", machine: Machine) -> None:
        """Take a model in the dtype in which it computes, on the machine's device or spread over several."""
        self.model = model.requires_grad_(False)
        self._machine = machine
        # The loss is computed on the student's device.
        self._head_WE = head_weight(self.model).to(machine.torch_device)

    @torch.no_grad()
    def __call__(self, real: VarlenBatch) -> TeacherHead:
        hidden_NE = hidden_states(self.model, real, self._machine)
        return TeacherHead(hidden_NE=hidden_NE.to(self._machine.torch_device), weight_WE=self._head_WE)


def open_teacher(
    method_name: str, folder: Path | None, student_tokenizer: Tokenizer, machine: Machine
) -> OnlineTeacher | None:
    """The signal that a method needs, or None; UserError for a superfluous, missing or unfit teacher."""
    if method(method_name).needs_teacher != (folder is not None):
        wanted = f"{'a teacher' if folder is None else 'no teacher'} for method {method_name}"
        got, next_step = str(folder or "none"), "name a teacher folder or another method"
        raise UserError("contradiction", wanted=wanted, got=got, next_step=next_step)
    if folder is None:
        return None
    require_same_vocabulary(student_tokenizer, folder)
    return OnlineTeacher(load_model(folder, machine, dtype=machine.torch_dtype, spread=True), machine)


def require_same_vocabulary(student: Tokenizer, teacher_folder: Path) -> None:
    """UserError for a teacher with another token for one of the student's ids, naming the first such id.

    More tokens after the student's, and another padding, are fine: both heads are cropped to the student's ids.
    """
    ours, theirs = student.tokens(), Tokenizer.load(teacher_folder).tokens()
    for index, (mine, other) in enumerate(itertools.zip_longest(ours, theirs[: len(ours)])):
        if mine != other:
            mine, other = ("no token" if token is None else repr(token) for token in (mine, other))
            wanted, where = f"a teacher with the student's {len(ours)} token ids", f"{len(theirs)} in {teacher_folder}"
            got = f"id {index} is {mine} for the student and {other} for the teacher, {where}"
            raise UserError("mismatch", wanted=wanted, got=got, next_step="take a teacher of the same tokenizer family")
