"""The verb `train` of `python -m instruct`: arguments to a config, whose defaults are the config's own."""

import argparse
from pathlib import Path
from typing import Any

from common.errors import not_found
from common.optim import OptimConfig
from common.store import run_alone
from instruct.train import InstructConfig, instruct


def add_verbs(subparsers: Any) -> None:
    """Register `train`."""
    run, optim = InstructConfig(), OptimConfig()
    verb = subparsers.add_parser(
        "train",
        help="tune a checkpoint on conversations",
        description="The loss counts the assistant's turns only; --replay mixes pre-training text in.",
    )
    add, folder, count = verb.add_argument, {"type": Path}, {"type": int, "metavar": "N"}
    conversations = "a folder of `python -m instruct conversations`"
    replay = "a folder of `python -m distill corpus` to replay from (default: conversations alone)"
    replay_rows = "packed rows of text a step (default: as --rows-per-step)"
    add("checkpoint", metavar="CHECKPOINT", help="model folder to start from", **folder)
    add("--conversations", required=True, metavar="DIR", help=conversations, **folder)
    add("--replay", metavar="CORPUS", help=replay, **folder)
    add("--out", required=True, metavar="DIR", help="a new folder", **folder)
    add("--steps", default=run.steps, help="optimizer steps", **count)
    add("--rows-per-step", default=run.rows_per_step, help="packed rows of conversations a step", **count)
    add("--replay-rows-per-step", help=replay_rows, **count)
    add("--micro-batch-rows", default=run.micro_batch_rows, help="packed rows of one forward pass", **count)
    add("--validate-every", default=run.validate_every, help="steps between validations", **count)
    add("--checkpoint-every", default=run.checkpoint_every, help="steps between checkpoints", **count)
    add("--optimizer", choices=["adamw", "muon"], default=optim.matrices, help="for the blocks' matrices")
    add("--learning-rate", type=float, default=optim.learning_rate, metavar="X", help="peak of AdamW")
    add("--muon-learning-rate", type=float, default=optim.muon_learning_rate, metavar="X", help="peak of Muon")
    add("--save-dtype", choices=["float32", "bfloat16"], default=run.save_dtype, help="number format of the weights")
    add("--seed", default=run.seed, help="seed of the order of the rows", **count)
    verb.set_defaults(function=_train)


def _train(parsed: argparse.Namespace) -> None:
    folders = {
        "CHECKPOINT": parsed.checkpoint,
        "--conversations": parsed.conversations,
        "--replay": parsed.replay,
    }
    for label, folder in folders.items():
        if folder is not None and not folder.is_dir():
            raise not_found(f"a folder for {label}", str(folder))
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
