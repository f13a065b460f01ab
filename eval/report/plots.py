"""The report's plots of losses, and their geometry: curves and ticks as numbers, relative to the plot area.

`plot_of` turns points into SVG path strings in a box of 1000 by 1000 units, origin at the top left, and ticks into
percent. The template stretches that box over the available width and sets the tick labels as ordinary text, so that
they keep their size on a phone. Independent of colours and markup.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from eval.report.view import STAGE_LABELS

BOX_UNITS = 1000
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Points of one line."""

    label: str
    """Text of the legend; empty for a line without one."""
    points: Sequence[Point]
    """(x, y); points with a y that is not finite are left out."""
    kind: str = "line"
    """`line`, `faint` (a line behind the others) or `dots`: its class in the template."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SvgPath:
    """One curve as SVG path data: `data` is the `d` attribute, in a box of 1000 by 1000 units."""

    label: str
    kind: str
    data: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """One labelled position on an axis: percent from the left (x) or from the top (y), 0 to 100."""

    label: str
    percent: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """The data of one plot for a template."""

    title: str
    summary: str
    """A description of the plot, for readers who cannot see it."""
    paths: tuple[SvgPath, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    wide: bool
    """Whether it is larger than the other plots where there is space."""


def loss_plots(report: Mapping[str, Any]) -> list[Plot]:
    """Distillation first and larger, with its loss and t over steps; then the loss of each other training stage."""
    plots: list[Plot] = []
    for curve in sorted(report["curves"], key=lambda curve: not curve["t"]):
        name = STAGE_LABELS[curve["stage"]]
        loss, validation, t = ([(x, y) for x, y in curve[field]] for field in ("loss", "validation_loss", "t"))
        if loss:
            plots.append(_loss_plot(name, loss, validation, wide=bool(t)))
        if t:
            shares = Curve(label="share of the teacher in the target", points=t)
            summary = f"t goes from {t[0][1]:.2f} to {t[-1][1]:.2f} over {t[-1][0]:,.0f} steps."
            title = f"{name}: interpolation coefficient t"
            plots.append(plot_of(title, [shares], summary=summary, y_range=(0.0, 1.0), wide=True))
    return plots


def _loss_plot(name: str, loss: Sequence[Point], validation: Sequence[Point], *, wide: bool) -> Plot:
    smoothed = smooth(loss, window=max(1, len(loss) // 24))
    summary = f"The loss goes from {loss[0][1]:.2f} to {smoothed[-1][1]:.2f} over {loss[-1][0]:,.0f} steps"
    if validation:
        summary += f"; on validation text it is {min(value for _, value in validation):.2f} at best"
    curves = [
        Curve(label="", points=loss, kind="faint"),
        Curve(label="training", points=smoothed),
        Curve(label="validation", points=validation, kind="dots"),
    ]
    return plot_of(f"{name}: loss", curves, summary=summary + ".", wide=wide)


def plot_of(
    title: str,
    curves: Iterable[Curve],
    *,
    summary: str,
    y_range: tuple[float, float] | None = None,
    wide: bool = False,
) -> Plot:
    """Places curves on common axes; `y_range` replaces the range of the data. At least one point is needed."""
    finite = [replace(curve, points=[point for point in curve.points if math.isfinite(point[1])]) for curve in curves]
    xs = [x for curve in finite for x, _ in curve.points]
    ys = [y for curve in finite for _, y in curve.points]
    assert xs, f"no point to plot in {title!r}"
    x_low, x_high = min(xs), max(xs)
    y_low, y_high = y_range or (min(ys), max(ys))
    y_marks = nice_ticks(y_low, y_high, count=4)
    y_low, y_high = min(y_low, y_marks[0]), max(y_high, y_marks[-1])
    x_marks = [mark for mark in nice_ticks(x_low, x_high, count=4) if x_low <= mark <= x_high] or [x_low]
    return Plot(
        title=title,
        summary=summary,
        paths=tuple(
            SvgPath(label=curve.label, kind=curve.kind, data=_path(curve, (x_low, x_high), (y_low, y_high)))
            for curve in finite
            if curve.points
        ),
        x_ticks=tuple(Tick(label=tick_label(mark, x_marks), percent=_percent(mark, x_low, x_high)) for mark in x_marks),
        y_ticks=tuple(
            Tick(label=tick_label(mark, y_marks), percent=100 - _percent(mark, y_low, y_high)) for mark in y_marks
        ),
        wide=wide,
    )


def nice_ticks(low: float, high: float, *, count: int) -> list[float]:
    """Round marks (1, 2 or 5 times a power of ten apart) that enclose [low, high] with about `count` gaps."""
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    gap = min((factor * power for factor in (1.0, 2.0, 5.0, 10.0)), key=lambda gap: abs(math.log(gap / raw)))
    first, last = math.floor(low / gap + 1e-9), math.ceil(high / gap - 1e-9)
    return [round(index * gap, 12) for index in range(first, last + 1)]


def tick_label(mark: float, marks: Sequence[float]) -> str:
    """A tick's text: as many decimals as the gap between the marks needs, with thousands separators."""
    gap = abs(marks[1] - marks[0]) if len(marks) > 1 else abs(mark) or 1.0
    decimals = max(0, -math.floor(math.log10(gap) + 1e-9)) if gap < 1 else 0
    return f"{mark:,.{decimals}f}"


def thin(points: Sequence[Point], *, at_most: int) -> list[Point]:
    """At most `at_most` points: means of consecutive groups, so that no spike is added or lost by chance."""
    if len(points) <= at_most:
        return list(points)
    bounds = [round(index * len(points) / at_most) for index in range(at_most + 1)]
    groups = [points[start:stop] for start, stop in itertools.pairwise(bounds)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def smooth(points: Sequence[Point], *, window: int) -> list[Point]:
    """Centred moving mean over at most `window` points on each side; fewer at the ends."""
    smoothed: list[Point] = []
    for index, (x, _) in enumerate(points):
        reach = min(window, index, len(points) - 1 - index)
        near = points[index - reach : index + reach + 1]
        smoothed.append((x, sum(y for _, y in near) / len(near)))
    return smoothed


def _percent(value: float, low: float, high: float) -> float:
    return 50.0 if high == low else round(100 * (value - low) / (high - low), 2)


def _path(curve: Curve, x_range: Point, y_range: Point) -> str:
    scale = BOX_UNITS / 100
    places = ((_percent(x, *x_range) * scale, _percent(y, *y_range) * scale) for x, y in curve.points)
    positions = [f"{x:.1f} {BOX_UNITS - y:.1f}" for x, y in places]
    if curve.kind == "dots":
        # A dot is a line of no length with round ends: it stays round when the box is stretched.
        return "".join(f"M{position}h0" for position in positions)
    return "M" + "L".join(positions)
