"""The distillation methods by name: objective, settings with their ranges, and the controller of their arguments.

A new method is one function in `distill.objectives` and one line in `METHODS` (`docs/add-a-method.md`). Two options of
every method are here once: a temperature for both sides, and a share of the language-modelling loss.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from math import inf
from typing import Any, Literal

from torch import Tensor

from common.chunk_passes import InPlace, Objective, PassName
from common.divergences import cross_entropy
from common.errors import UserError, unknown_name
from distill import objectives
from distill.objectives import ChunkResult

LossPass = Literal["auto", PassName, "triton"]
"""How the objective is run over a chunk of logits; `auto` takes what suits the device (`common.chunk_passes`)."""

Settings = tuple[tuple[str, float], ...]
"""(name, value) of an objective's settings that differ from their defaults, in the order of the names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """A range of numbers."""

    low: float = 0.0
    high: float = inf
    low_included: bool = False
    high_included: bool = False
    whole: bool = False
    """Only whole numbers."""

    def __contains__(self, value: float) -> bool:
        above = value >= self.low if self.low_included else value > self.low
        below = value <= self.high if self.high_included else value < self.high
        return above and below and (not self.whole or float(value).is_integer())

    def __str__(self) -> str:
        ends = (
            f"{'at least' if self.low_included else 'above'} {self.low:g}",
            f"{'at most' if self.high_included else 'below'} {self.high:g}",
        )
        return ("a whole number " if self.whole else "") + " and ".join(ends[: 1 if self.high == inf else 2])


OPEN_SHARE = Range(high=1.0)
SKEW = Range(high=1.0, low_included=True)
POSITIVE = Range()
WEIGHT = Range(low_included=True)
COUNT = Range(low=1.0, low_included=True, whole=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """What the training loop must know of a method."""

    function: Callable[..., ChunkResult]
    """From `distill.objectives`."""
    needs_teacher: bool = True
    controller: Literal["taid", "ctkd"] | None = None
    """What moves an argument of the objective between steps (`distill.controllers`)."""
    ranges: Mapping[str, Range] = field(default_factory=dict[str, Range])
    """The objective's settings; their defaults are the function's own."""
    loss_kind: frozenset[Literal["cross_entropy", "kl"]] = frozenset()
    """Which of these the objective's loss is; the log has the other under its name if the objective computes it."""

    @property
    def has_kernel(self) -> bool:
        """Whether there is a Triton kernel (`distill.taid_kernel`): for TAID, and for forward KL, which is t = 1."""
        return self.needs_teacher and bool(self.loss_kind)

    @property
    def supports_temperature(self) -> bool:
        """Whether both sides can be softened: there is a teacher, and no learnt temperature."""
        return self.needs_teacher and self.controller != "ctkd"

    def kernel(self, kwargs: Mapping[str, Any]) -> InPlace:
        """The objective as a Triton kernel, where `has_kernel` and `require_kernel` hold."""
        from distill.taid_kernel import taid_in_place

        (loss_kind,) = self.loss_kind
        return taid_in_place(kwargs.get("t", 1.0), loss_kind=loss_kind)

    def objective(
        self, kwargs: Mapping[str, Any], settings: Settings = (), *, temperature: float = 1.0, lm_weight: float = 0.0
    ) -> Objective:
        """The objective of one optimizer step.

        Args:
            kwargs: from the controller: `t`, `temperature`, or nothing.
            settings: see `require_settings`.
            temperature: divides both sides' logits; loss and gradient are multiplied by its square, so that the
                gradient keeps its size (Hinton et al. 2015, arXiv 1503.02531, section 2).
            lm_weight: share of the language-modelling loss in the sum, 0 to 1.
        """
        bound = {name: int(value) if self.ranges[name].whole else value for name, value in settings} | dict(kwargs)

        def objective(student_logits_CV: Tensor, teacher_logits_CV: Tensor | None, targets_C: Tensor) -> ChunkResult:
            return self.function(student_logits_CV, teacher_logits_CV, targets_C, **bound)

        softened = objective if temperature == 1.0 else _softened(objective, temperature)
        return softened if lm_weight == 0.0 else _mixed(softened, lm_weight)


def pass_name(loss_pass: LossPass) -> PassName | None:
    """What `fused_linear_loss` takes: None where the device or the objective itself decides."""
    return None if loss_pass == "auto" or loss_pass == "triton" else loss_pass


def _softened(objective: Objective, temperature: float) -> Objective:
    """`T^2` times the objective of logits divided by T."""

    def softened(student_logits_CV: Tensor, teacher_logits_CV: Tensor | None, targets_C: Tensor) -> ChunkResult:
        teacher_CV = None if teacher_logits_CV is None else teacher_logits_CV / temperature
        loss_C, gradient_CV, extras = objective(student_logits_CV / temperature, teacher_CV, targets_C)
        scaled = {name: value_C * temperature**2 for name, value_C in extras.items() if name in ("cross_entropy", "kl")}
        return loss_C * temperature**2, gradient_CV.mul_(temperature), extras | scaled

    return softened


def _mixed(objective: Objective, lm_weight: float) -> Objective:
    """`(1 - w)` times the objective plus w times the cross-entropy on the text; the log has both."""

    def mixed(student_logits_CV: Tensor, teacher_logits_CV: Tensor | None, targets_C: Tensor) -> ChunkResult:
        loss_C, gradient_CV, extras = objective(student_logits_CV, teacher_logits_CV, targets_C)
        lm_C, lm_gradient_CV = cross_entropy(student_logits_CV, targets_C)
        extras = extras | {DISTILLATION_LOSS: loss_C, "lm_loss": lm_C}
        return loss_C.lerp(lm_C, lm_weight), gradient_CV.lerp_(lm_gradient_CV, lm_weight), extras

    return mixed


DISTILLATION_LOSS = "distillation_loss"
"""In the log: the objective's own loss, where the language-modelling loss is mixed in."""

METHODS: dict[str, Method] = {
    # Towards text, whose entropy is 0, cross-entropy and KL are the same.
    "cross_entropy": Method(
        function=objectives.cross_entropy, needs_teacher=False, loss_kind=frozenset(("cross_entropy", "kl"))
    ),
    "forward_kl": Method(function=objectives.forward_kl, loss_kind=frozenset(("kl",))),
    "reverse_kl": Method(function=objectives.reverse_kl),
    "jensen_shannon": Method(function=objectives.jensen_shannon, ranges={"beta": OPEN_SHARE}),
    "total_variation": Method(function=objectives.total_variation),
    "skew_forward_kl": Method(function=objectives.skew_forward_kl, ranges={"skew": SKEW}),
    "skew_reverse_kl": Method(function=objectives.skew_reverse_kl, ranges={"skew": SKEW}),
    "adaptive_kl": Method(function=objectives.adaptive_kl, ranges={"head_mass": OPEN_SHARE}),
    "ctkd": Method(function=objectives.ctkd, controller="ctkd"),
    "decoupled_kd": Method(function=objectives.decoupled_kd, ranges={"target_weight": WEIGHT, "other_weight": WEIGHT}),
    "decoupled_top_k": Method(function=objectives.decoupled_top_k, ranges={"k": COUNT, "kept_temperature": POSITIVE}),
    "taid": Method(function=objectives.taid, controller="taid", loss_kind=frozenset(("cross_entropy",))),
    "taid_labels": Method(
        function=objectives.taid_labels,
        needs_teacher=False,
        controller="taid",
        ranges={"smoothing": OPEN_SHARE},
        loss_kind=frozenset(("cross_entropy",)),
    ),
}


def method(name: str) -> Method:
    """The method of this name.

    Raises:
        UserError: unknown name.
    """
    if name not in METHODS:
        raise unknown_name("a method", name, sorted(METHODS))
    return METHODS[name]


def defaults(name: str) -> dict[str, float]:
    """The settings of a method with their default values."""
    parameters = inspect.signature(method(name).function).parameters
    return {setting: parameters[setting].default for setting in method(name).ranges}


def require_settings(name: str, settings: Settings) -> None:
    """Refuse settings that the method does not have, or that are outside their range.

    Raises:
        UserError: either of the two.
    """
    ranges = method(name).ranges
    for setting, value in settings:
        if setting not in ranges:
            raise unknown_name(f"a setting of {name}", setting, sorted(ranges) or ["it has none"])
        if value not in ranges[setting]:
            wanted = f"{setting} {ranges[setting]}"
            raise UserError("out-of-range", wanted=wanted, got=f"{value:g}", next_step=f"correct {setting} of {name}")


def require_loss_pass(name: str, loss_pass: LossPass, *, temperature: float, lm_weight: float) -> None:
    """Refuse the Triton kernel for a loss that it does not compute.

    Raises:
        UserError: another method than TAID and forward KL, a temperature, or a language-modelling loss mixed in.
    """
    if loss_pass == "triton" and (not method(name).has_kernel or temperature != 1.0 or lm_weight > 0.0):
        wanted = "taid or forward_kl with temperature 1 and lm_weight 0 for the loss pass triton"
        got = f"{name}, temperature {temperature:g}, lm_weight {lm_weight:g}"
        raise UserError("contradiction", wanted=wanted, got=got, next_step="take the loss pass auto")


def require_kernel(loss_pass: LossPass, device: str) -> None:
    """Refuse the loss pass `triton` where it cannot run.

    Raises:
        UserError: no Triton, or another device than CUDA.
    """
    wanted, next_step = "a CUDA device and the package triton for the loss pass triton", "take the loss pass auto"
    if loss_pass == "triton" and device != "cuda":
        raise UserError("unsupported", wanted=wanted, got=device, next_step=next_step)
    if loss_pass == "triton" and find_spec("triton") is None:
        raise UserError("not-installed", wanted=wanted, got="no triton", next_step=next_step)


def parse_settings(name: str, texts: list[str]) -> Settings:
    """Settings of a method from the command line's texts, such as `["beta=0.5"]`.

    Raises:
        UserError: not `name=number`, or as `require_settings`.
    """
    parsed: dict[str, float] = {}
    for text in texts:
        setting, _, value = text.partition("=")
        try:
            parsed[setting] = float(value)
        except ValueError:
            wanted = "settings as name=number"
            raise UserError("wrong-format", wanted=wanted, got=text, next_step="write for example beta=0.5") from None
    settings = tuple(sorted(parsed.items()))
    require_settings(name, settings)
    return settings
