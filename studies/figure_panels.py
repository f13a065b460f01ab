"""The panels of the article's figures: numbers and words in, a matplotlib figure out.

Each curve is labelled in place, in its own colour, without legends. The numbers come from `studies.figure_curves` and
`studies.run_curves`; `studies.figures` chooses words and fonts, and saves.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

from studies import figure_curves as curves
from studies.run_curves import Measured

Words = Mapping[str, str]

INK, FAINT, FLOOR = "#222222", "#8a8a8a", "#6b6b6b"
BLUE, RED, GREEN = "#1f6fb2", "#c4532b", "#2f8f5b"
ALPHA_COLOURS = dict(zip(curves.ALPHAS, (RED, GREEN, BLUE), strict=True))
TEACHER = "#dcd6c8"
DASHES = (0, (5, 3))
DRAW_EVERY = 20  # steps: finer than a pixel, and a twentieth of the SVG
STYLE: dict[RcKeyType, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "savefig.dpi": 200,
    "svg.hashsalt": "tinyswallow",  # the same picture gives the same bytes
    "svg.fonttype": "path",  # an SVG shows its Japanese where no Japanese font is installed
}


def draw_t_simulation(words: Words) -> Figure:
    """t by optimizer step for each alpha, as a band between two sigmas, over the linear floor."""
    figure, axes = _figure(7.4, 4.6, 1, 1)
    steps = np.arange(curves.STEPS + 1)[::DRAW_EVERY]
    # Where each band has room for its name: step, t.
    places = {5e-3: (330, 1.03), 1e-3: (1900, 0.785), 5e-4: (4050, 0.76)}
    for alpha, colour in ALPHA_COLOURS.items():
        config = curves.simulation_config(alpha)
        low, high = (
            curves.t_with_sigma_held(config, sigma, steps=curves.STEPS)[::DRAW_EVERY] for sigma in curves.SIGMA_BAND
        )
        axes[0].fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
        for edge in (low, high):
            axes[0].plot(steps, edge, color=colour, linewidth=1.0)
        axes[0].text(*places[alpha], f"$\\alpha = {_power(alpha)}$", color=colour)
    _draw_floor(axes[0], words["linear_floor"])
    axes[0].set(title=words["simulation_title"], xlabel=words["step"], ylabel=words["teacher_share"])
    axes[0].set(xlim=(0, 1.01 * curves.STEPS), ylim=(0, 1.1))
    _note(figure, words["simulation_note"].format(steps=curves.STEPS))
    return figure


def draw_closed_form(words: Words) -> Figure:
    """The closed form over the simulation, and its graphical solution."""
    figure, (axes, solution) = _figure(10.4, 4.5, 1, 2, widths=(1.6, 1.0))
    steps = np.arange(curves.STEPS + 1)[::DRAW_EVERY]
    for alpha, colour in ALPHA_COLOURS.items():
        for sigma in curves.SIGMA_BAND:
            t = curves.t_with_sigma_held(curves.simulation_config(alpha), sigma, steps=curves.STEPS)
            axes.plot(steps, t[::DRAW_EVERY], color=colour, linewidth=4.5, alpha=0.3, solid_capstyle="butt")
            closed = curves.closed_form(alpha, sigma, steps=curves.STEPS)
            axes.plot(steps, closed[::DRAW_EVERY], color=colour, linewidth=1.1, linestyle=(0, (4, 2)))
    alpha, sigma = curves.ALPHAS[-1], curves.SIGMA_BAND[0]
    config = curves.simulation_config(alpha)
    floor = curves.floor_curve(config, steps=curves.STEPS)
    _draw_floor(axes, words["linear_floor"])
    overtakes = curves.overtaking_step(curves.t_with_sigma_held(config, sigma, steps=curves.STEPS), floor)
    assert overtakes is not None, "the released alpha at sigma 0.5 meets the floor before the end"
    text = words["floor_takes_over"].format(alpha=_power(alpha), step=overtakes)
    _point_at(axes, (overtakes, float(floor[overtakes])), text, (-30, -150))
    axes.text(0.5, 0.1, words["closed_label"], transform=axes.transAxes)
    axes.set(title=words["closed_title"], xlabel=words["step"], ylabel=words["teacher_share"])
    axes.set(xlim=(0, curves.STEPS * 1.01), ylim=(0, 1.03))
    _draw_cobweb(solution, words, share=0.25)
    return figure


def _draw_cobweb(axes: Axes, words: Words, *, share: float) -> None:
    """The staircase from t = 0 to the fixed point."""
    ends = np.array([0.0, 1.0])
    axes.plot(ends, ends, color=FAINT, linewidth=1.0)
    axes.plot(ends, share + (1.0 - share) * ends, color=BLUE, linewidth=1.8)
    axes.plot(*curves.cobweb(share, count=20).T, color=RED, linewidth=1.1)
    axes.plot([1.0], [1.0], "o", color=INK, markersize=5, clip_on=False)
    axes.text(0.03, 0.66, words["cobweb_update"], color=BLUE)
    axes.text(0.62, 0.53, words["cobweb_diagonal"], color=FLOOR)
    axes.text(1.0, 0.71, words["cobweb_fixed_point"], ha="right", va="top")
    axes.text(0.98, 0.04, words["cobweb_note"].format(share=share), ha="right", color=FLOOR, fontsize=9)
    axes.set(title=words["cobweb_title"], xlabel="$t_n$", ylabel="$t_{n+1}$")
    axes.set(xlim=(0, 1.02), ylim=(0, 1.03))


def draw_modes(words: Words) -> Figure:
    """One Gaussian fitted to three modes: by forward KL, by reverse KL, and where it settles along TAID's path."""
    figure, (forward, reverse, taid, path) = _figure(9.6, 6.6, 2, 2)
    ts = np.linspace(0.01, 1.0, 100)
    students = curves.taid_path(ts)
    shades = matplotlib.colormaps["plasma"]
    _draw_density(forward, words, words["modes_forward"], curves.fit_forward(), BLUE, words["modes_student"])
    _draw_density(reverse, words, words["modes_reverse"], curves.fit_reverse(), RED, words["modes_student"])
    for t, place in ((0.2, (-2.0, 0.52)), (0.45, (-0.6, 0.245)), (1.0, (1.4, 0.135))):
        student = students[int(np.argmin(np.abs(ts - t)))]
        _draw_density(taid, words, words["modes_taid"], student, shades(0.72 * t), f"$t = {t:g}$", place)
    means, sds = (np.array([getattr(one, name) for one in students]) for name in ("mean", "sd"))
    path.fill_between(ts, means - sds, means + sds, color=GREEN, alpha=0.18, linewidth=0)
    path.plot(ts, means, color=GREEN, linewidth=1.8)
    for _, mode in curves.MIXTURE:
        path.axhline(mode.mean, color=FLOOR, linewidth=0.8, linestyle=(0, (1, 2)))
    path.text(0.02, curves.MIXTURE[-1][1].mean - 0.15, words["modes_of_teacher"], va="top", color=FLOOR)
    path.text(0.62, -1.3, words["modes_mean"], color=GREEN)
    path.text(0.62, 1.6, words["modes_sd"], color=GREEN)
    path.set(title=words["modes_path"], xlabel="$t$", ylabel=words["modes_value"], xlim=(0, 1), ylim=(-5.2, 6.2))
    _note(figure, words["modes_note"])
    return figure


def _draw_density(
    axes: Axes,
    words: Words,
    title: str,
    student: curves.Gaussian,
    colour: Any,
    label: str,
    place: tuple[float, float] | None = None,
) -> None:
    """The teacher's density, filled, and one student's over it, labelled at its peak or at `place`."""
    teacher, density = (np.exp(log(curves.GRID)) for log in (curves.log_mixture, student.log_density))
    if not axes.lines:
        axes.fill_between(curves.GRID, teacher, color=TEACHER, linewidth=0)
        axes.text(5.0, 0.19, words["modes_teacher"], ha="center", color=FLOOR)
    axes.plot(curves.GRID, density, color=colour, linewidth=2.0)
    x, y = place or (student.mean + 0.45 * student.sd, float(density.max()) + 0.012)
    axes.text(x, y, label, color=colour)
    axes.set(title=title, xlabel=words["modes_value"], ylabel=words["modes_density"], xlim=(-8, 9), ylim=(0, 0.7))


def draw_measured(words: Words, study: Measured | None) -> Figure:
    """What the runs of `make compare` measured; one sentence where there are none."""
    if study is None:
        figure, axes = _figure(7.4, 2.4, 1, 1)
        axes[0].set_axis_off()
        axes[0].text(0.5, 0.5, words["measured_absent"], ha="center", va="center", transform=axes[0].transAxes)
        return figure
    figure, (t_axes, sigma_axes, loss_axes) = _figure(12.0, 4.2, 1, 3)
    _draw_measured_t(t_axes, words, study)
    _draw_measured_sigma(sigma_axes, words, study)
    _draw_measured_loss(loss_axes, words, study)
    for axes in (t_axes, sigma_axes, loss_axes):
        axes.set(xlabel=words["step"], xlim=(0, study.steps))
    runs = words["measured_runs" if len(study.runs) > 1 else "measured_one_run"].format(count=len(study.runs))
    note = words["measured_note"]
    _note(figure, note.format(recipe=study.recipe, steps=study.steps, alpha=study.config.alpha, runs=runs))
    return figure


def _draw_measured_t(axes: Axes, words: Words, study: Measured) -> None:
    """t of every run over the assumed band and the floor, and where the floor takes over."""
    low, high = (curves.t_with_sigma_held(study.config, sigma, steps=study.steps) for sigma in curves.SIGMA_BAND)
    steps = np.arange(study.steps + 1)
    axes.fill_between(steps, low, high, color=BLUE, alpha=0.16, linewidth=0)
    axes.plot(steps, curves.floor_curve(study.config, steps=study.steps), color=FLOOR, linestyle=DASHES, linewidth=1.2)
    for one in study.runs:
        # A step is computed with the t after the previous step.
        axes.plot(one.step - 1, one.t, color=BLUE, linewidth=1.2)
    leads = [one.floor_leads_from for one in study.runs if one.floor_leads_from is not None]
    if leads:
        first, last = min(leads), max(leads)
        text = words["measured_overtakes"].format(step=f"{first:,}" if first == last else f"{first:,}-{last:,}")
        one = next(one for one in study.runs if one.floor_leads_from == first)
        _point_at(axes, (first - 1, float(np.interp(first, one.step, one.t))), text, (24, -64))
    axes.text(0.97, 0.13, words["measured_key"], transform=axes.transAxes, ha="right", va="bottom", color=BLUE)
    axes.text(0.97, 0.11, words["measured_floor"], transform=axes.transAxes, ha="right", va="top", color=FLOOR)
    axes.set(title=words["measured_t_title"], ylim=(min(0.98 * study.config.t_start, 0.95), 1.02))


def _draw_measured_sigma(axes: Axes, words: Words, study: Measured) -> None:
    """sigma of every run over the assumed band."""
    low, high = curves.SIGMA_BAND
    axes.axhspan(low, high, color=BLUE, alpha=0.16, linewidth=0)
    axes.text(0.97, 0.8, words["measured_sigma_band"], transform=axes.transAxes, ha="right", color=BLUE)
    logged = [(one.step, one.sigma) for one in study.runs if one.sigma is not None]
    for step, sigma in logged:
        axes.plot(step, sigma, color=BLUE, linewidth=1.2)
    least = min((float(sigma.min()) for _, sigma in logged), default=low)
    most = max((float(sigma.max()) for _, sigma in logged), default=low)
    text = words["measured_sigma"].format(low=least, high=most) if logged else words["measured_no_sigma"]
    axes.text(0.97, 0.05, text, transform=axes.transAxes, ha="right", va="bottom", color=BLUE if logged else FLOOR)
    axes.set(title=words["measured_sigma_title"], ylim=(min(0.4, least - 0.05), 1.02))


def _draw_measured_loss(axes: Axes, words: Words, study: Measured) -> None:
    """Cross-entropy and KL of every run, faint, and their means."""
    # The share of the steps that a label covers, in the language with the longer one.
    for name, share, colour, lines in (
        ("measured_cross_entropy", 0.6, RED, [one.cross_entropy for one in study.runs]),
        ("measured_kl", 0.35, GREEN, [one.kl for one in study.runs]),
    ):
        for one, line in zip(study.runs, lines, strict=True):
            axes.plot(one.step, line, color=colour, linewidth=0.7, alpha=0.35)
        mean = np.mean(lines, axis=0)
        axes.plot(study.runs[0].step, mean, color=colour, linewidth=1.6)
        # Above every point below the label, and no higher: another curve may be there.
        top = max(float(line[int((1.0 - share) * len(line)) :].max()) for line in lines)
        place: dict[str, Any] = {"xytext": (0, 5), "textcoords": "offset points", "ha": "right"}
        axes.annotate(words[name], (0.99 * study.steps, top), color=colour, **place)
    axes.set(title=words["measured_loss_title"])
    axes.set_ylim(bottom=0)


def _figure(
    width: float, height: float, rows: int, columns: int, widths: tuple[float, ...] | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure, sizes in inches, and its axes row by row. It belongs to no window."""
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.add_gridspec(rows, columns, width_ratios=widths)
    axes = [figure.add_subplot(grid[row, column]) for row in range(rows) for column in range(columns)]
    return figure, axes


def _note(figure: Figure, text: str) -> None:
    """One small line below everything."""
    figure.supxlabel(text, x=0.01, ha="left", fontsize=8.5, color=FLOOR)


def _draw_floor(axes: Axes, label: str) -> None:
    """The linear floor of the simulation, from 0 to 1, and step numbers with separators."""
    axes.plot([0, curves.STEPS], [0.0, 1.0], color=FLOOR, linestyle=DASHES, linewidth=1.2)
    axes.text(0.6 * curves.STEPS, 0.53, label, color=FLOOR)
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _point_at(axes: Axes, point: tuple[float, float], text: str, offset: tuple[float, float]) -> None:
    """A dot, and its text at an offset in points, joined by a thin line."""
    axes.plot(*([place] for place in point), "o", color=INK, markersize=4.5, zorder=5)
    arrow = {"arrowstyle": "-", "color": FAINT, "linewidth": 0.8}
    axes.annotate(text, point, xytext=offset, textcoords="offset points", ha="center", va="top", arrowprops=arrow)


def _power(alpha: float) -> str:
    """5e-4 as mathematics."""
    digit, exponent = f"{alpha:.0e}".split("e")
    factor = "" if digit == "1" else rf"{digit} \times "
    return f"{factor}10^{{{int(exponent)}}}"
