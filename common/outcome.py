"""What a training run achieved on held-out text: facts for its manifest, one line for its user, and warnings.

A loop can run to its end and teach nothing. The store prints the line and the warnings under the stage's own line, and
the report shows them. Pure functions; independent of loops and of the report.
"""

import math
from collections.abc import Mapping
from typing import Any

_NEARLY = 0.99
"""A model that has collapsed ends near the loss of a guess, on either side of it."""
_EXCHANGED = "check that student and teacher are not exchanged"


def training_outcome(
    losses: Mapping[str, float],
    *,
    held_out_after: float,
    best_step: int,
    first_validation: int,
    steps: int,
    vocab_size: int,
) -> dict[str, Any]:
    """Facts of a finished run: `validation_loss_before`, `validation_loss`, `best_step`, `summary` and `warnings`.

    Args:
        losses: `held_out_before`, the mean cross-entropy on the validation split before the first step, in nats, and
            `first_loss` and `last_loss`, the training losses of the first step and the last one that had a token to
            learn; both are absent where no step had one.
        held_out_after: the held-out loss of the weights that are kept.
        best_step: optimizer steps of these weights.
        first_validation: optimizer steps before the first validation.
        steps: optimizer steps of the run.
        vocab_size: number of the tokenizer's ids V; a model that guesses has the loss ln V.
    """
    held_out_before, uniform = losses["held_out_before"], math.log(vocab_size)
    warnings: list[str] = []
    if held_out_after >= held_out_before:
        warnings.append(
            f"the held-out loss did not fall: {held_out_before:.3f} nats before the first step, "
            f"{held_out_after:.3f} at its lowest; lower the learning rate, or check the data"
        )
    if held_out_after > _NEARLY * uniform:
        warnings.append(
            f"the held-out loss of {held_out_after:.3f} nats is no better than {uniform:.3f}, that of a guess among "
            f"{vocab_size:,} tokens: the model has learnt nothing that holds; lower the learning rate"
        )
    if best_step == first_validation < steps:
        warnings.append(
            f"the held-out loss was lowest at step {best_step}, the first validation of {steps} steps; "
            "lower the learning rate, take fewer steps, or give more data"
        )
    summary = f"held-out loss {held_out_before:.3f} to {held_out_after:.3f} nats, best at step {best_step} of {steps}"
    if "first_loss" in losses:
        summary += f"; training loss {losses['first_loss']:.3f} to {losses['last_loss']:.3f}"
    summary += "; curves in metrics.jsonl"
    return {
        "validation_loss_before": held_out_before,
        "validation_loss": held_out_after,
        "best_step": best_step,
        "summary": summary,
        "warnings": warnings,
    }


def teacher_warnings(
    *, teacher_parameters: int, student_parameters: int, teacher_loss: float, student_loss: float
) -> list[str]:
    """Warnings before a distillation whose teacher is smaller than its student, or no better.

    `teacher_loss` and `student_loss` are mean cross-entropies on the same held-out rows before the first step, in nats.
    """
    warnings: list[str] = []
    if teacher_parameters < student_parameters:
        sizes = f"{teacher_parameters:,} parameters and the student {student_parameters:,}"
        warnings.append(f"the teacher has {sizes}; {_EXCHANGED}")
    if teacher_loss >= student_loss:
        losses = f"{teacher_loss:.3f} nats on held-out text and the student {student_loss:.3f} before the first step"
        warnings.append(f"the teacher has a loss of {losses}: it has nothing to teach on this text; {_EXCHANGED}")
    return warnings
