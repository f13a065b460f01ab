"""The verbs `init` and `train` of `python -m distill`: arguments to configs.

Defaults are the configs' own, but for TAID's alpha: left out, it follows the run's length. A flag that the run would
not read, such as a setting of another method, is refused.
"""

import argparse
import typing
from pathlib import Path
from typing import Any, Protocol

from common.cli import HelpWithDefaults
from common.errors import UserError
from common.optim import OptimConfig
from common.store import run_alone
from distill.ctkd import CtkdConfig
from distill.initial import InitConfig, init
from distill.methods import METHODS, LossPass, defaults, parse_settings
from distill.on_policy import OnPolicyConfig
from distill.taid import RELEASED_STEPS, TaidConfig, alpha_for
from distill.train import DistillConfig, distill

Subparsers = Any  # argparse's own class for this is private

_MAKERS = "`python -m distill corpus` or `python -m instruct conversations`"


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
        formatter_class=HelpWithDefaults,
    )
    verb.add_argument("--config", type=Path, required=True, metavar="CONFIG.json", help="a Hugging Face config.json")
    verb.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="a tokenizer folder")
    verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    verb.add_argument("--seed", type=int, default=default.seed, metavar="N", help="seed of the weights")
    verb.set_defaults(function=_init)


def _init(parsed: argparse.Namespace) -> None:
    config = InitConfig(config_json=parsed.config.read_text(encoding="utf-8"), seed=parsed.seed)
    run_alone(init, config, parsed.out, parsed.tokenizer)


_DEFAULTS: dict[str, Any] = {
    "run": DistillConfig(),
    "optim": OptimConfig(),
    "taid": TaidConfig(),
    "ctkd": CtkdConfig(),
    "on_policy": OnPolicyConfig(),
}
"""Whose fields the flags of `train` set, by the first part of the name that a flag's value has."""


class _Add(Protocol):
    def __call__(self, flag: str, field: str, meaning: str, **options: Any) -> None: ...


def _adder(verb: argparse.ArgumentParser) -> _Add:
    """Adds flags that each set one field of a config, named as in "taid.beta".

    What is not given is not set at all: the config's own default holds, and what was given can be told.
    """
    flag_of: dict[str, str] = {}
    verb.set_defaults(flag_of=flag_of)

    def add(flag: str, field: str, meaning: str, **options: Any) -> None:
        group, _, name = field.partition(".")
        default = getattr(_DEFAULTS[group], name)
        if "action" not in options and "choices" not in options:
            options = {"type": type(default), "metavar": "N" if isinstance(default, int) else "X"} | options
        if "action" not in options and "(default" not in meaning and default is not None:
            meaning += f" (default: {default:g})" if isinstance(default, float) else f" (default: {default})"
        flag_of[field] = flag
        verb.add_argument(flag, dest=field, default=argparse.SUPPRESS, help=meaning, **options)

    return add


def _add_train(subparsers: Subparsers) -> None:
    verb = subparsers.add_parser(
        "train",
        help="pre-train, or distil a teacher",
        description="Without --teacher it pre-trains with cross-entropy, with one it distils by TAID.",
        epilog=_settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    folder = {"type": Path, "metavar": "DIR"}
    verb.add_argument("--student", required=True, help="model folder to start from", **folder)
    verb.add_argument("--corpus", required=True, help=f"a folder of {_MAKERS}", **folder)
    verb.add_argument("--teacher", help="model folder of the frozen teacher (default: none)", **folder)
    verb.add_argument("--out", required=True, help="a new folder", **folder)
    verb.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=X",
        help="a setting of the method, may be given several times (default: as listed below)",
    )
    add = _adder(verb)
    with_teacher = "objective (default: taid with a teacher, else cross_entropy)"
    add("--method", "run.method", with_teacher, choices=sorted(METHODS))
    add("--temperature", "run.temperature", "divides both sides' logits; the loss is multiplied by its square")
    add("--lm-weight", "run.lm_weight", "share of the language-modelling loss in the loss, 0 to 1")
    add(
        "--corpus-tokens",
        "run.corpus_tokens",
        "read only the first N tokens of train, in epochs (default: all)",
        type=int,
        metavar="N",
    )
    add("--steps", "run.steps", "optimizer steps")
    add("--rows-per-step", "run.rows_per_step", "packed rows of one step")
    add("--micro-batch-rows", "run.micro_batch_rows", "packed rows that go through the model at one time")
    add("--validate-every", "run.validate_every", "steps between validations")
    add("--checkpoint-every", "run.checkpoint_every", "steps between checkpoints")
    add("--optimizer", "optim.matrices", "for the blocks' matrices", choices=["adamw", "muon"])
    add("--learning-rate", "optim.learning_rate", "AdamW's peak")
    add("--muon-learning-rate", "optim.muon_learning_rate", "Muon's peak")
    _add_methods_own(add)
    _add_on_policy(add)
    add(
        "--loss-pass",
        "run.loss_pass",
        "how the loss is computed from a chunk of logits; they differ in speed, and in a result's last digits",
        choices=list(typing.get_args(LossPass)),
    )
    add("--save-dtype", "run.save_dtype", "number format of the weights", choices=["float32", "bfloat16"])
    add("--seed", "run.seed", "seed of the order of the rows")
    verb.set_defaults(function=_train)


def _add_methods_own(add: _Add) -> None:
    released = _DEFAULTS["taid"].alpha
    add("--t-start", "taid.t_start", "teacher's share in the target at step 0")
    add("--t-end", "taid.t_end", "teacher's share at the end of the ramp")
    add("--ramp-share", "taid.ramp_share", "share of the steps that the ramp takes")
    add(
        "--alpha",
        "taid.alpha",
        f"largest adaptive rise of t in a step (default: {released:g} as released, and in a ramp of "
        f"n < {RELEASED_STEPS:,} steps {released * RELEASED_STEPS:g}/n)",
    )
    add("--beta", "taid.beta", "decay of the momentum of t")
    add(
        "--linear",
        "taid.adaptive",
        "t follows the ramp alone (default: it rises by the adaptive term as well)",
        action="store_false",
    )
    add(
        "--released",
        "taid.released",
        "the rule for t exactly as in the released code (default: as docs/decisions.md says)",
        action="store_true",
    )
    add("--watch", "taid.watches", "loss value that drives t", choices=["cross_entropy", "kl"])
    add("--temperature-learning-rate", "ctkd.learning_rate", "step of ctkd's learnt temperature")


def _add_on_policy(add: _Add) -> None:
    add(
        "--on-policy",
        "on_policy.probability",
        "share of the micro-batches whose responses the student writes itself, 0 to 1 (default: 0)",
    )
    add(
        "--on-policy-schedule",
        "on_policy.schedule",
        "adaptive: --on-policy is the share at the start, and it rises where the held-out loss does",
        choices=["fixed", "adaptive"],
    )
    add("--on-policy-rise", "on_policy.rise", "what one rise adds to an adaptive share")
    add(
        "--on-policy-tolerance",
        "on_policy.tolerance_nats",
        "rise of the held-out loss, nats, that an adaptive share heeds",
    )
    add("--max-new-tokens", "on_policy.max_new_tokens", "longest response of --on-policy, tokens")
    add("--replay", "on_policy.replay", "share of those micro-batches that come from the replay buffer, 0 to 1")
    add("--sampling-temperature", "on_policy.temperature", "of the responses; 0 takes the likeliest token")


def _settings_help() -> str:
    lines = ["settings of the methods (--set NAME=X):"]
    for name, chosen in sorted(METHODS.items()):
        for setting, value in defaults(name).items():
            lines.append(f"  {name}: {setting}, {chosen.ranges[setting]} (default: {value:g})")
    return "\n".join(lines)


def _given(parsed: argparse.Namespace, group: str) -> dict[str, Any]:
    """The fields of one config that were given."""
    fields = (name.partition(".") for name in vars(parsed))
    return {name: getattr(parsed, f"{group}.{name}") for first, _, name in fields if first == group}


def _refuse_unread(parsed: argparse.Namespace, name: str, on_policy: OnPolicyConfig | None) -> None:
    """Refuse flags that were given and that a run of method `name` would not read."""

    def only(read: bool, wanted: str, got: str, *fields: str) -> None:
        unread = [parsed.flag_of[field] for field in vars(parsed) if field.startswith(fields)]
        if unread and not read:
            raise UserError(
                wanted=f"{wanted} for {', '.join(unread)}",
                got=got,
                next_step=f"leave {'it' if len(unread) == 1 else 'them'} out, or change the other",
            )

    driver, adapts = METHODS[name].driver, on_policy is not None and on_policy.schedule == "adaptive"
    for group in ("taid", "ctkd"):
        driven = " or ".join(sorted(other for other, method in METHODS.items() if method.driver == group))
        only(driver == group, f"--method {driven}", f"method {name}", f"{group}.")
    adaptive = ("taid.alpha", "taid.beta", "taid.watches")
    only("adaptive" not in _given(parsed, "taid"), "an adaptive t", "--linear", *adaptive)
    only(name != "cross_entropy", "another method", f"method {name}, which has no other loss", "run.lm_weight")
    muon = OptimConfig(**_given(parsed, "optim")).matrices == "muon"
    only(muon, "--optimizer muon", "--optimizer adamw", "optim.muon_learning_rate")
    responses = ("on_policy.max_new_tokens", "on_policy.replay", "on_policy.temperature")
    only(on_policy is not None, "--on-policy above 0", "no responses of the student", *responses)
    only(adapts, "--on-policy-schedule adaptive", "a fixed share", "on_policy.rise", "on_policy.tolerance_nats")


def _on_policy(parsed: argparse.Namespace) -> OnPolicyConfig | None:
    settings: dict[str, Any] = {"probability": 0.0} | _given(parsed, "on_policy")
    config = OnPolicyConfig(**settings)
    return config if config.probability > 0.0 or config.schedule == "adaptive" else None


def _taid(parsed: argparse.Namespace, *, steps: int) -> TaidConfig:
    given = _given(parsed, "taid")
    if "alpha" not in given and not given.get("released"):
        given["alpha"] = alpha_for(steps=steps, ramp_share=given.get("ramp_share", TaidConfig().ramp_share))
    return TaidConfig(**given)


def _require_folders(parsed: argparse.Namespace) -> None:
    for label, folder in (("--student", parsed.student), ("--corpus", parsed.corpus), ("--teacher", parsed.teacher)):
        if folder is not None and not folder.is_dir():
            raise UserError(wanted=f"a folder for {label}", got=f"{folder}", next_step="check the path")
    if not (parsed.corpus / "packed" / "train").is_dir():
        raise UserError(
            wanted=f"for --corpus a folder of {_MAKERS}",
            got=f"{parsed.corpus}, which holds no packed/train",
            next_step="make one of your text or conversations, and name what was its --out",
        )


def _train(parsed: argparse.Namespace) -> None:
    _require_folders(parsed)
    given: dict[str, Any] = {"method": "taid" if parsed.teacher else "cross_entropy"} | _given(parsed, "run")
    on_policy = _on_policy(parsed)
    _refuse_unread(parsed, given["method"], on_policy)
    config = DistillConfig(
        settings=parse_settings(given["method"], parsed.set),
        taid=_taid(parsed, steps=given.get("steps", DistillConfig().steps)),
        ctkd=CtkdConfig(**_given(parsed, "ctkd")),
        optim=OptimConfig(**_given(parsed, "optim")),
        on_policy=on_policy,
        **given,
    )
    run_alone(distill, config, parsed.out, parsed.corpus, parsed.student, parsed.teacher)
