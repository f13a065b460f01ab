"""The verb `train` of `python -m instruct`: arguments to a config, whose defaults are the config's own."""

import argparse
from pathlib import Path
from typing import Any

from common.cli import HelpWithDefaults
from common.errors import UserError
from common.optim import OptimConfig
from common.store import run_alone
from instruct.train import InstructConfig, instruct

Subparsers = Any  # argparse's own class for this is private


def add_verbs(subparsers: Subparsers) -> None:
    """Register `train`."""
    run, optim = InstructConfig(), OptimConfig()
    verb = subparsers.add_parser(
        "train",
        help="tune a checkpoint on conversations",
        description="Loss on the assistant's turns only; --replay mixes pre-training text in.",
        formatter_class=HelpWithDefaults,
    )
    add = verb.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="model folder to start from")
    add(
        "--conversations",
        type=Path,
        required=True,
        metavar="DIR",
        help="a folder of `python -m instruct conversations`",
    )
    add(
        "--replay",
        type=Path,
        metavar="CORPUS",
        help="a folder of `python -m distill corpus` to replay from (default: conversations alone)",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    add("--steps", type=int, default=run.steps, metavar="N", help="optimizer steps")
    add("--rows-per-step", type=int, default=run.rows_per_step, metavar="N", help="packed rows of conversations a step")
    add(
        "--replay-rows-per-step", type=int, metavar="N", help="packed rows of text a step (default: as --rows-per-step)"
    )
    add(
        "--micro-batch-rows",
        type=int,
        default=run.micro_batch_rows,
        metavar="N",
        help="packed rows that go through the model at one time",
    )
    add("--validate-every", type=int, default=run.validate_every, metavar="N", help="steps between validations")
    add("--checkpoint-every", type=int, default=run.checkpoint_every, metavar="N", help="steps between checkpoints")
    add("--optimizer", choices=["adamw", "muon"], default=optim.matrices, help="for the blocks' matrices")
    add("--learning-rate", type=float, default=optim.learning_rate, metavar="X", help="AdamW's peak")
    add("--muon-learning-rate", type=float, default=optim.muon_learning_rate, metavar="X", help="Muon's peak")
    add("--save-dtype", choices=["float32", "bfloat16"], default=run.save_dtype, help="number format of the weights")
    add("--seed", type=int, default=run.seed, metavar="N", help="seed of the order of the rows")
    verb.set_defaults(function=_train)


def _train(parsed: argparse.Namespace) -> None:
    folders = (
        ("CHECKPOINT", parsed.checkpoint),
        ("--conversations", parsed.conversations),
        ("--replay", parsed.replay),
    )
    for label, folder in folders:
        if folder is not None and not folder.is_dir():
            raise UserError(wanted=f"a folder for {label}", got=f"{folder}", next_step="check the path")
    replay_rows = parsed.replay_rows_per_step
    if replay_rows is None:
        replay_rows = parsed.rows_per_step if parsed.replay else 0
    config = InstructConfig(
        optim=OptimConfig(
            matrices=parsed.optimizer,
            learning_rate=parsed.learning_rate,
            muon_learning_rate=parsed.muon_learning_rate,
        ),
        steps=parsed.steps,
        rows_per_step=parsed.rows_per_step,
        replay_rows_per_step=replay_rows,
        micro_batch_rows=parsed.micro_batch_rows,
        validate_every=parsed.validate_every,
        checkpoint_every=parsed.checkpoint_every,
        save_dtype=parsed.save_dtype,
        seed=parsed.seed,
    )
    run_alone(instruct, config, parsed.out, parsed.checkpoint, parsed.conversations, parsed.replay)
