"""Held-out loss of a model folder: cross-entropy on packed rows that no stage has trained on.

It measures checkpoints only; exported files are measured by `eval.fidelity`.
"""

from pathlib import Path

from common.checkpoint import load_model
from common.device import Machine
from common.packing import PackedRows
from common.tokenizer import Tokenizer
from common.training import row_losses
from eval.runtimes.torch_runtime import dtype_on


def held_out_losses(model_folder: Path, packed_folder: Path, machine: Machine) -> list[tuple[float, float]]:
    """Loss on each packed row: (sum over its tokens in nats, number of tokens), weighted as packed.

    Args:
        model_folder: a Hugging Face folder.
        packed_folder: one split, `<corpus>/packed/<split>`.
        machine: where to compute.

    Raises:
        UserError: rows packed with another tokenizer, an unreadable model.
    """
    tokenizer = Tokenizer.load(model_folder)
    rows = PackedRows(packed_folder)
    rows.require(tokenizer)
    model = load_model(model_folder, machine, dtype=dtype_on(machine, exact=False))
    return row_losses(model, rows, machine, vocab_size=tokenizer.size)
