"""The verbs `init` and `train` of `python -m distill`: arguments to configs.

Defaults are the configs' own, except TAID's alpha, which follows the length of the run. A flag that the run would not
read, such as a setting of another method, is refused.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from common.errors import UserError, not_found
from common.optim import OptimConfig
from common.store import run_alone
from distill.controllers import CtkdConfig
from distill.initial import InitConfig, init
from distill.methods import METHODS, LossPass, defaults, parse_settings
from distill.on_policy import OnPolicyConfig
from distill.taid import RELEASED_STEPS, TaidConfig, alpha_for
from distill.train import DistillConfig, distill

_MAKERS = "`python -m distill corpus` or `python -m instruct conversations`"


@dataclass(frozen=True, slots=True)
class _Flag:
    """A flag of `train` that sets one field of a config; where it is omitted, the config's default holds."""

    name: str
    field: str
    help: str
    choices: Sequence[str] | None = None

    def add_to(self, group: Any, default: Any) -> None:
        """Register the flag; its value is None where it is omitted."""
        options: dict[str, Any]
        if isinstance(default, bool):
            options = {"action": "store_const", "const": not default}
        elif self.choices:
            options = {"choices": self.choices}
        else:
            number = int if default is None else type(default)
            options = {"type": number, "metavar": "N" if number is int else "X"}
        shown = f" (default: {default:g})" if isinstance(default, float) else f" (default: {default})"
        group.add_argument(self.name, help=self.help + ("" if "(default" in self.help else shown), **options)

    def value(self, parsed: argparse.Namespace) -> Any:
        """The value on the command line; None where the flag is omitted."""
        return getattr(parsed, self.name.removeprefix("--").replace("-", "_"))


_ALPHA = TaidConfig().alpha
_FLAGS: dict[type, tuple[_Flag, ...]] = {
    DistillConfig: (
        _Flag("--method", "method", "objective (default: taid with a teacher, else cross_entropy)", sorted(METHODS)),
        _Flag("--temperature", "temperature", "divides both sides' logits; the loss is multiplied by its square"),
        _Flag("--lm-weight", "lm_weight", "share of the language-modelling loss in the loss, 0 to 1"),
        _Flag("--corpus-tokens", "corpus_tokens", "read only the first N tokens of train, in epochs (default: all)"),
        _Flag("--steps", "steps", "optimizer steps"),
        _Flag("--rows-per-step", "rows_per_step", "packed rows of one step"),
        _Flag("--micro-batch-rows", "micro_batch_rows", "packed rows of one forward pass"),
        _Flag("--validate-every", "validate_every", "steps between validations"),
        _Flag("--checkpoint-every", "checkpoint_every", "steps between checkpoints"),
        _Flag(
            "--loss-pass",
            "loss_pass",
            "how the loss is computed from a chunk of logits: affects speed, and a result's last digits",
            get_args(LossPass),
        ),
        _Flag("--save-dtype", "save_dtype", "number format of the weights", ("float32", "bfloat16")),
        _Flag("--seed", "seed", "seed of the order of the rows"),
    ),
    OptimConfig: (
        _Flag("--optimizer", "matrices", "for the blocks' matrices", ("adamw", "muon")),
        _Flag("--learning-rate", "learning_rate", "peak of AdamW"),
        _Flag("--muon-learning-rate", "muon_learning_rate", "peak of Muon"),
    ),
    TaidConfig: (
        _Flag("--t-start", "t_start", "teacher's share in the target at step 0"),
        _Flag("--t-end", "t_end", "teacher's share at the end of the ramp"),
        _Flag("--ramp-share", "ramp_share", "share of the steps that the ramp takes"),
        _Flag(
            "--alpha",
            "alpha",
            f"largest adaptive rise of t in a step (default: {_ALPHA:g} as released, and in a ramp of "
            f"n < {RELEASED_STEPS:,} steps {_ALPHA * RELEASED_STEPS:g}/n)",
        ),
        _Flag("--beta", "beta", "decay of the momentum of t"),
        _Flag("--linear", "adaptive", "t follows the ramp alone (default: the adaptive term can raise it)"),
        _Flag("--released", "released", "the released code's rule for t (default: that of docs/decisions.md)"),
        _Flag("--watch", "controller_input", "loss that drives t", ("cross_entropy", "kl")),
    ),
    CtkdConfig: (_Flag("--temperature-learning-rate", "learning_rate", "step of ctkd's learnt temperature"),),
    OnPolicyConfig: (
        _Flag("--on-policy", "probability", "share of the micro-batches that are rollouts, 0 to 1 (default: 0)"),
        _Flag(
            "--on-policy-schedule",
            "schedule",
            "adaptive: --on-policy is the initial share, and it rises when the validation loss does",
            ("fixed", "adaptive"),
        ),
        _Flag("--on-policy-rise", "rise", "what one rise adds to an adaptive share"),
        _Flag(
            "--on-policy-tolerance", "tolerance_nats", "validation-loss increase (nats) that raises an adaptive share"
        ),
        _Flag("--max-new-tokens", "max_new_tokens", "longest response of --on-policy, tokens"),
        _Flag("--replay", "replay", "share of the rollout batches that come from the replay buffer, 0 to 1"),
        _Flag("--sampling-temperature", "temperature", "of the responses; 0 takes the likeliest token"),
    ),
}
_TITLES = ("run", "optimizer", "TAID", "CTKD", "responses that the student generates itself (rollouts)")


def add_verbs(subparsers: Any) -> None:
    """Register `init` and `train`."""
    verb = subparsers.add_parser(
        "init",
        help="write an untrained model folder",
        description="Writes a Hugging Face model folder with random weights, and the tokenizer.",
    )
    folder: dict[str, Any] = {"type": Path, "metavar": "DIR"}
    verb.add_argument("--config", type=Path, required=True, metavar="CONFIG.json", help="a Hugging Face config.json")
    verb.add_argument("--tokenizer", required=True, help="a tokenizer folder", **folder)
    verb.add_argument("--out", required=True, help="a new folder", **folder)
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the weights")
    verb.set_defaults(function=_init)
    verb = subparsers.add_parser(
        "train",
        help="pre-train, or distil a teacher",
        description="Without --teacher it pre-trains with cross-entropy, with one it distils by TAID.",
        epilog=_settings_help(),
    )
    verb.add_argument("--student", required=True, help="model folder to start from", **folder)
    verb.add_argument("--corpus", required=True, help=f"a folder of {_MAKERS}", **folder)
    verb.add_argument("--teacher", help="model folder of the frozen teacher (default: none)", **folder)
    verb.add_argument("--out", required=True, help="a new folder", **folder)
    meaning = "a setting of the method; may be repeated (default: as listed below)"
    verb.add_argument("--set", action="append", metavar="NAME=X", help=meaning)
    for title, (config, flags) in zip(_TITLES, _FLAGS.items(), strict=True):
        group, defaults_of_config = verb.add_argument_group(title), config()
        for flag in flags:
            flag.add_to(group, getattr(defaults_of_config, flag.field))
    verb.set_defaults(function=_train)


def _settings_help() -> str:
    lines = ["settings of the methods (--set NAME=X):"]
    for name, chosen in sorted(METHODS.items()):
        for setting, value in defaults(name).items():
            lines.append(f"  {name}: {setting}, {chosen.ranges[setting]} (default: {value:g})")
    return "\n".join(lines)


def _init(parsed: argparse.Namespace) -> None:
    if parsed.config.is_dir():
        wanted, next_step = "a file for --config", f"name {parsed.config / 'config.json'}"
        raise UserError("wrong-format", wanted=wanted, got=f"the folder {parsed.config}", next_step=next_step)
    config = InitConfig(config_json=parsed.config.read_text(encoding="utf-8"), seed=parsed.seed)
    run_alone(init, config, parsed.out, parsed.tokenizer)


def _given(parsed: argparse.Namespace, config: type) -> dict[str, Any]:
    """The fields of one config that the command line sets."""
    values = {flag.field: flag.value(parsed) for flag in _FLAGS[config]}
    return {field: value for field, value in values.items() if value is not None}


def _refuse_unread(parsed: argparse.Namespace, name: str, on_policy: OnPolicyConfig | None) -> None:
    """Refuse given flags that a run of method `name` does not read."""

    def require(is_read: bool, wanted: str, got: str, *names: str) -> None:
        every = (flag for flags in _FLAGS.values() for flag in flags)
        given = [flag.name for flag in every if flag.name in names and flag.value(parsed) is not None]
        if given and not is_read:
            next_step = f"leave {'it' if len(given) == 1 else 'them'} out, or change the other"
            raise UserError("contradiction", wanted=f"{wanted} for {', '.join(given)}", got=got, next_step=next_step)

    controller, adapts = METHODS[name].controller, on_policy is not None and on_policy.schedule == "adaptive"
    for config, controlled in ((TaidConfig, "taid"), (CtkdConfig, "ctkd")):
        methods = " or ".join(sorted(other for other, one in METHODS.items() if one.controller == controlled))
        flags = (flag.name for flag in _FLAGS[config])
        require(controller == controlled, f"--method {methods}", f"method {name}", *flags)
    require(parsed.linear is None, "an adaptive t", "--linear", "--alpha", "--beta", "--watch")
    require(name != "cross_entropy", "another method", f"method {name}, which has no other loss", "--lm-weight")
    require(parsed.optimizer == "muon", "--optimizer muon", "--optimizer adamw", "--muon-learning-rate")
    responses = ("--max-new-tokens", "--replay", "--sampling-temperature")
    require(on_policy is not None, "--on-policy above 0", "no responses of the student", *responses)
    adaptive = ("--on-policy-rise", "--on-policy-tolerance")
    require(adapts, "--on-policy-schedule adaptive", "a fixed share", *adaptive)


def _require_folders(parsed: argparse.Namespace) -> None:
    for label, folder in (("--student", parsed.student), ("--corpus", parsed.corpus), ("--teacher", parsed.teacher)):
        if folder is not None and not folder.is_dir():
            raise not_found(f"a folder for {label}", str(folder))
    if not (parsed.corpus / "packed" / "train").is_dir():
        wanted, got = f"for --corpus a folder of {_MAKERS}", f"{parsed.corpus}, which holds no packed/train"
        next_step = "make one of your text or conversations, and name its --out"
        raise UserError("wrong-format", wanted=wanted, got=got, next_step=next_step)


def _train(parsed: argparse.Namespace) -> None:
    _require_folders(parsed)
    given: dict[str, Any] = {"method": "taid" if parsed.teacher else "cross_entropy"} | _given(parsed, DistillConfig)
    responses: dict[str, Any] = {"probability": 0.0} | _given(parsed, OnPolicyConfig)
    on_policy = OnPolicyConfig(**responses)
    on_policy = on_policy if on_policy.probability > 0.0 or on_policy.schedule == "adaptive" else None
    _refuse_unread(parsed, given["method"], on_policy)
    taid = _given(parsed, TaidConfig)
    if "alpha" not in taid and not taid.get("released"):
        steps, share = given.get("steps", DistillConfig().steps), taid.get("ramp_share", TaidConfig().ramp_share)
        taid["alpha"] = alpha_for(steps=steps, ramp_share=share)
    config = DistillConfig(
        settings=parse_settings(given["method"], parsed.set or []),
        taid=TaidConfig(**taid),
        ctkd=CtkdConfig(**_given(parsed, CtkdConfig)),
        optim=OptimConfig(**_given(parsed, OptimConfig)),
        on_policy=on_policy,
        **given,
    )
    run_alone(distill, config, parsed.out, parsed.corpus, parsed.student, parsed.teacher)
