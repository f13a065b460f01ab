"""The verbs `init` and `train` of `python -m distill`: arguments to configs.

Defaults are the configs' own, but for TAID's alpha: left out, it follows the run's length.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.optim import OptimConfig
from common.store import run_alone
from distill.ctkd import CtkdConfig
from distill.initial import InitConfig, init
from distill.methods import METHODS, defaults, parse_settings
from distill.on_policy import OnPolicyConfig
from distill.taid import RELEASED_STEPS, TaidConfig, alpha_for
from distill.train import DistillConfig, distill

Subparsers = Any  # argparse's own class for this is private


def add_verbs(subparsers: Subparsers) -> None:
    """Register `init` and `train`."""
    _add_init(subparsers)
    _add_train(subparsers)


def _add_init(subparsers: Subparsers) -> None:
    default = InitConfig(config_json='{"model_type": "qwen2"}')
    verb = subparsers.add_parser(
        "init",
        help="write an untrained model folder",
        description="Writes a Hugging Face model folder with random weights and the tokenizer beside them.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    verb.add_argument("--config", type=Path, required=True, metavar="CONFIG.json", help="a Hugging Face config.json")
    verb.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="a tokenizer folder")
    verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    verb.add_argument("--seed", type=int, default=default.seed, metavar="N", help="seed of the weights")
    verb.set_defaults(function=_init)


def _init(parsed: argparse.Namespace) -> None:
    config = InitConfig(config_json=parsed.config.read_text(encoding="utf-8"), seed=parsed.seed)
    run_alone(init, config, parsed.out, parsed.tokenizer)


def _add_train(subparsers: Subparsers) -> None:
    run = DistillConfig()
    verb = subparsers.add_parser(
        "train",
        help="pre-train, or distil a teacher",
        description="Without --teacher it pre-trains with cross-entropy, with one it distils by TAID.",
        epilog=_settings_help(),
        formatter_class=_Help,
    )
    add = verb.add_argument
    add("--student", type=Path, required=True, metavar="DIR", help="model folder to start from")
    add("--corpus", type=Path, required=True, metavar="DIR", help="a folder of `python -m distill corpus`")
    add("--teacher", type=Path, metavar="DIR", help="model folder of the frozen teacher")
    add("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    add(
        "--method",
        choices=sorted(METHODS),
        default=argparse.SUPPRESS,
        help="objective (default: taid with a teacher, else cross_entropy)",
    )
    add(
        "--set",
        action="append",
        default=argparse.SUPPRESS,
        metavar="NAME=X",
        help="a setting of the method, see below; may be given several times",
    )
    add(
        "--temperature",
        type=float,
        default=run.temperature,
        metavar="X",
        help="divides both sides' logits; the loss is multiplied by its square",
    )
    add(
        "--lm-weight",
        type=float,
        default=run.lm_weight,
        metavar="X",
        help="share of the language-modelling loss in the loss, 0 to 1",
    )
    add("--corpus-tokens", type=int, metavar="N", help="read only the first N tokens of train, in epochs")
    add("--steps", type=int, default=run.steps, metavar="N", help="optimizer steps")
    add("--rows-per-step", type=int, default=run.rows_per_step, metavar="N", help="packed rows of one step")
    add(
        "--micro-batch-rows",
        type=int,
        default=run.micro_batch_rows,
        metavar="N",
        help="packed rows that go through the model at one time",
    )
    add("--validate-every", type=int, default=run.validate_every, metavar="N", help="steps between validations")
    add("--checkpoint-every", type=int, default=run.checkpoint_every, metavar="N", help="steps between checkpoints")
    _add_optimizer(add)
    _add_methods_own(add)
    add("--save-dtype", choices=["float32", "bfloat16"], default=run.save_dtype, help="number format of the weights")
    add("--seed", type=int, default=run.seed, metavar="N", help="seed of the order of the rows")
    verb.set_defaults(function=_train)


def _add_optimizer(add: Callable[..., Any]) -> None:
    optim = OptimConfig()
    add("--optimizer", choices=["adamw", "muon"], default=optim.matrices, help="for the blocks' matrices")
    add("--learning-rate", type=float, default=optim.learning_rate, metavar="X", help="AdamW's peak")
    add("--muon-learning-rate", type=float, default=optim.muon_learning_rate, metavar="X", help="Muon's peak")


def _add_methods_own(add: Callable[..., Any]) -> None:
    taid, ctkd, own = TaidConfig(), CtkdConfig(), OnPolicyConfig()
    add("--t-start", type=float, default=taid.t_start, metavar="X", help="teacher's share in the target at step 0")
    add("--t-end", type=float, default=taid.t_end, metavar="X", help="teacher's share at the end of the ramp")
    add("--ramp-share", type=float, default=taid.ramp_share, metavar="X", help="share of the steps that the ramp takes")
    add(
        "--alpha",
        type=float,
        default=argparse.SUPPRESS,
        metavar="X",
        help=f"largest adaptive rise of t in a step (default: {taid.alpha:g} as released, "
        f"and in a ramp of n < {RELEASED_STEPS:,} steps {taid.alpha * RELEASED_STEPS:g}/n)",
    )
    add("--beta", type=float, default=taid.beta, metavar="X", help="decay of the momentum of t")
    add("--linear", action="store_true", help="t follows the ramp alone, without the adaptive term")
    add("--released", action="store_true", help="the rule for t exactly as in the released code")
    add("--watch", choices=["cross_entropy", "kl"], default=taid.watches, help="loss value that drives t")
    add(
        "--temperature-learning-rate",
        type=float,
        default=ctkd.learning_rate,
        metavar="X",
        help="step of ctkd's learnt temperature",
    )
    add(
        "--on-policy",
        type=float,
        default=0.0,
        metavar="X",
        help="share of the micro-batches whose responses the student writes itself, 0 to 1",
    )
    add(
        "--max-new-tokens",
        type=int,
        default=own.max_new_tokens,
        metavar="N",
        help="longest response of --on-policy, tokens",
    )
    add(
        "--replay",
        type=float,
        default=own.replay,
        metavar="X",
        help="share of those micro-batches that come from the replay buffer, 0 to 1",
    )
    add(
        "--sampling-temperature",
        type=float,
        default=own.temperature,
        metavar="X",
        help="of the responses; 0 takes the likeliest token",
    )


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside the options, and the list of settings as it is written."""


def _settings_help() -> str:
    lines = ["settings of the methods (--set NAME=X):"]
    for name, chosen in sorted(METHODS.items()):
        for setting, value in defaults(name).items():
            lines.append(f"  {name}: {setting}, {chosen.ranges[setting]} (default: {value:g})")
    return "\n".join(lines)


def _on_policy(parsed: argparse.Namespace) -> OnPolicyConfig:
    return OnPolicyConfig(
        probability=parsed.on_policy,
        max_new_tokens=parsed.max_new_tokens,
        replay=parsed.replay,
        temperature=parsed.sampling_temperature,
    )


def _alpha(parsed: argparse.Namespace) -> float:
    return TaidConfig().alpha if parsed.released else alpha_for(steps=parsed.steps, ramp_share=parsed.ramp_share)


def _train(parsed: argparse.Namespace) -> None:
    name = getattr(parsed, "method", "taid" if parsed.teacher else "cross_entropy")
    for label, folder in (("--student", parsed.student), ("--corpus", parsed.corpus), ("--teacher", parsed.teacher)):
        if folder is not None and not folder.is_dir():
            raise UserError(wanted=f"a folder for {label}", got=f"{folder}", next_step="check the path")
    config = DistillConfig(
        method=name,
        settings=parse_settings(name, getattr(parsed, "set", [])),
        temperature=parsed.temperature,
        lm_weight=parsed.lm_weight,
        ctkd=CtkdConfig(learning_rate=parsed.temperature_learning_rate),
        taid=TaidConfig(
            alpha=getattr(parsed, "alpha", _alpha(parsed)),
            beta=parsed.beta,
            t_start=parsed.t_start,
            t_end=parsed.t_end,
            ramp_share=parsed.ramp_share,
            adaptive=not parsed.linear,
            released=parsed.released,
            watches=parsed.watch,
        ),
        optim=OptimConfig(
            matrices=parsed.optimizer,
            learning_rate=parsed.learning_rate,
            muon_learning_rate=parsed.muon_learning_rate,
        ),
        on_policy=_on_policy(parsed) if parsed.on_policy else None,
        corpus_tokens=parsed.corpus_tokens,
        steps=parsed.steps,
        rows_per_step=parsed.rows_per_step,
        micro_batch_rows=parsed.micro_batch_rows,
        validate_every=parsed.validate_every,
        checkpoint_every=parsed.checkpoint_every,
        save_dtype=parsed.save_dtype,
        seed=parsed.seed,
    )
    run_alone(distill, config, parsed.out, parsed.corpus, parsed.student, parsed.teacher)
