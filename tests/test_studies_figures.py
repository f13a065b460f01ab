"""The article's figures: numbers against scipy and hand-written loops, words against the font, and the files."""

import ast
import itertools
import json
import math
import re
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
from errors_tiny import refuses
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from distill.taid import TaidConfig
from studies import figure_curves as curves
from studies import figures
from studies.figure_panels import STYLE, draw_measured, draw_modes
from studies.run_curves import Measured, MeasuredRun

ROOT = Path(__file__).parents[1]
LABELS = tomllib.loads((ROOT / "studies" / "figure_labels.toml").read_text(encoding="utf-8"))


@given(alpha=st.floats(1e-4, 0.5), sigma=st.floats(0.01, 1.0), start=st.floats(0.0, 0.9), ramp=st.floats(0.3, 1.0))
def test_t_with_sigma_held_is_the_written_out_rule(alpha: float, sigma: float, start: float, ramp: float) -> None:
    config = TaidConfig(alpha=alpha, t_start=start, t_end=0.95, ramp_share=ramp)
    found = curves.t_with_sigma_held(config, sigma, steps=50)
    t = start
    for step in range(1, 51):
        floor = start + (0.95 - start) * min(1.0, step / (50 * ramp))
        t = min(0.95, max(floor, t + alpha * sigma * (1 - t)))
        assert found[step] == pytest.approx(t, rel=1e-12)
    assert len(found) == 51 and found[0] == start


@pytest.mark.parametrize("alpha", curves.ALPHAS)
@pytest.mark.parametrize("sigma", curves.SIGMA_BAND)
def test_the_closed_form_is_the_simulation_until_the_floor_overtakes(alpha: float, sigma: float) -> None:
    config = curves.simulation_config(alpha)
    t = curves.t_with_sigma_held(config, sigma, steps=curves.STEPS)
    closed = curves.closed_form(alpha, sigma, steps=curves.STEPS)
    overtakes = curves.overtaking_step(t, curves.floor_curve(config, steps=curves.STEPS))
    assert overtakes is not None
    np.testing.assert_allclose(t[:overtakes], closed[:overtakes], rtol=0, atol=1e-12)
    np.testing.assert_allclose(t[overtakes:], np.arange(overtakes, curves.STEPS + 1) / curves.STEPS, atol=1e-12)
    if overtakes < curves.STEPS:

        def lead(step: float) -> float:
            return 1 - math.exp(step * math.log1p(-alpha * sigma)) - step / curves.STEPS

        crossing = scipy.optimize.root_scalar(lead, bracket=(1_000, curves.STEPS - 1)).root
        assert overtakes == math.ceil(crossing)


def test_the_closed_form_starts_where_it_is_told() -> None:
    config = TaidConfig(alpha=0.3, t_start=0.4)
    held = curves.t_with_sigma_held(config, 0.6, steps=8)
    np.testing.assert_allclose(curves.closed_form(0.3, 0.6, steps=8, t_start=0.4)[:6], held[:6], rtol=1e-12)


def test_overtaking_is_for_good_or_not_at_all() -> None:
    floor = np.array([0.0, 0.1, 0.2, 0.3, 0.4])
    assert curves.overtaking_step(np.array([0.0, 0.1, 0.25, 0.3, 0.4]), floor) == 3
    assert curves.overtaking_step(np.array([0.0, 0.1, 0.2, 0.3, 0.4]), floor) == 0
    assert curves.overtaking_step(np.array([0.0, 0.2, 0.3, 0.4, 0.5]), floor) is None


def test_the_cobweb_climbs_between_the_two_lines_through_the_closed_form() -> None:
    corners = curves.cobweb(0.25, count=8)
    assert corners.shape == (17, 2)
    on_map, on_diagonal = corners[1::2], corners[::2]
    np.testing.assert_allclose(on_map[:, 1], on_map[:, 0] + 0.25 * (1 - on_map[:, 0]))
    np.testing.assert_allclose(on_diagonal[:, 0], on_diagonal[:, 1])
    np.testing.assert_allclose(on_diagonal[:, 0], curves.closed_form(0.5, 0.5, steps=8))


def _teacher(x: float) -> float:
    return sum((weight * _normal(x, one) for weight, one in curves.MIXTURE), start=0.0)


def _normal(x: float, density: curves.Gaussian) -> float:
    return float(scipy.stats.norm.pdf(x, density.mean, density.sd))


def _integral(function: Callable[[float], float]) -> float:
    return scipy.integrate.quad(function, -25, 25, limit=400, points=[-3, 0, 5])[0]


def test_forward_kl_finds_the_moments_of_the_mixture() -> None:
    mean = sum(weight * one.mean for weight, one in curves.MIXTURE)
    second = sum(weight * (one.sd**2 + one.mean**2) for weight, one in curves.MIXTURE)
    found = curves.fit_forward()
    assert (found.mean, found.sd) == pytest.approx((mean, math.sqrt(second - mean**2)), abs=1e-6)


def test_reverse_kl_finds_scipys_local_minimum_and_it_is_one_mode() -> None:
    x = np.linspace(-15, 15, 6001)
    teacher = np.array([_teacher(float(one)) for one in x])

    def reverse_kl(at: tuple[float, float]) -> float:
        mean, sd = at[0], math.exp(at[1])
        gap = scipy.stats.norm.logpdf(x, mean, sd) - np.log(teacher + 1e-300)
        return float(np.trapezoid(scipy.stats.norm.pdf(x, mean, sd) * gap, x))

    start = (curves.STUDENT_START.mean, math.log(curves.STUDENT_START.sd))
    wanted = scipy.optimize.minimize(reverse_kl, start, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12})
    found = curves.fit_reverse()
    assert (found.mean, found.sd) == pytest.approx((wanted.x[0], math.exp(wanted.x[1])), abs=1e-4)
    assert _modes_within(found) == 1


TS = np.linspace(0.01, 1.0, 100)


@pytest.fixture(scope="module")
def path() -> list[curves.Gaussian]:
    """The settled students of TS."""
    return curves.taid_path(TS)


@pytest.mark.parametrize("t", [0.1, 0.45, 0.8])
def test_a_settled_student_has_the_moments_of_its_own_target(path: list[curves.Gaussian], t: float) -> None:
    student = path[int(np.argmin(np.abs(TS - t)))]

    def target(x: float) -> float:
        return _normal(x, student) ** (1 - t) * _teacher(x) ** t

    total = _integral(target)
    mean = _integral(lambda x: x * target(x)) / total
    variance = _integral(lambda x: (x - mean) ** 2 * target(x)) / total
    assert (student.mean, student.sd) == pytest.approx((mean, math.sqrt(variance)), abs=1e-5)


def _modes_within(student: curves.Gaussian) -> int:
    """How many of the teacher's modes lie within 1.7 standard deviations."""
    return sum(abs(one.mean - student.mean) < 1.7 * student.sd for _, one in curves.MIXTURE)


def test_the_path_leads_from_one_mode_to_all_three_as_the_page_says(path: list[curves.Gaussian]) -> None:
    reverse, forward = curves.fit_reverse(), curves.fit_forward()
    assert (path[0].mean, path[0].sd) == pytest.approx((reverse.mean, reverse.sd), abs=0.01)
    assert (path[-1].mean, path[-1].sd) == pytest.approx((forward.mean, forward.sd), abs=1e-6)
    for t, modes in ((0.2, 1), (0.45, 2), (1.0, 3)):
        assert _modes_within(path[int(np.argmin(np.abs(TS - t)))]) == modes
    jumps = np.flatnonzero(np.diff([student.sd for student in path]) > 0.5) + 1
    page = (ROOT / "docs" / "taid.md").read_text(encoding="utf-8")
    said = re.findall(r"(?:second mode|third)\s+at\s+\$t = ([\d.]+)\$", page)
    assert said == [f"{TS[jump]:.2f}" for jump in jumps]


def test_both_languages_have_every_label_and_each_is_drawn() -> None:
    assert LABELS["en"].keys() == LABELS["ja"].keys()
    source = (ROOT / "studies" / "figure_panels.py").read_text(encoding="utf-8")
    assert {key for key in LABELS["en"] if f'"{key}"' not in source} == set()
    assert LABELS["en"] != LABELS["ja"]
    for key in LABELS["en"]:
        # Without the braces of exponents and indices.
        texts = [re.sub(r"[\^_]\{.*?\}", "", LABELS[language][key]) for language in ("en", "ja")]
        assert len({tuple(sorted(re.findall(r"\{(\w+)", text))) for text in texts}) == 1, key


def test_the_japanese_font_has_every_character() -> None:
    font = figures.japanese_font()
    assert font is not None, "it comes with the set-up"
    glyphs = FT2Font(str(font)).get_charmap()
    characters = set("".join(LABELS["ja"].values())) - {"\n"}
    assert {character for character in characters if ord(character) not in glyphs} == set()


def test_a_character_without_a_glyph_is_an_error_and_not_a_box(tmp_path: Path) -> None:
    figure = Figure()
    figure.text(0.5, 0.5, "最適化", family="DejaVu Sans")
    with pytest.raises(UserWarning, match="missing from"):
        figures.save(figure, tmp_path / "figure")


def _study(tmp_path: Path, **changes: object) -> Path:
    """A compare.json of two TAID runs with four points, and one run of another method."""
    curve = {
        "step": [1, 10, 20, 30],
        "t": [0.4, 0.6, 0.9, 1.0],
        "sigma": [0.5, 0.51, 0.52, 0.49],
        "cross_entropy": [3.0, 2.0, 1.5, 1.4],
        "kl": [0.1, 0.3, 0.2, 0.1],
        "floor_leads_from": 20,
    }
    runs = [
        {"method": "taid", "seed": 0, "curves": curve},
        {"method": "forward_kl", "seed": 0, "curves": {**curve, "t": None, "sigma": None, "floor_leads_from": None}},
        {"method": "taid", "seed": 1, "curves": {**curve, "floor_leads_from": 22}},
    ]
    study = {"recipe": "toy", "steps": 30, "taid": {"alpha": 0.2}, "runs": runs, **changes}
    path = tmp_path / "compare.json"
    path.write_text(json.dumps(study), encoding="utf-8")
    return path


def _texts(axes: Axes) -> str:
    return "\n".join(text.get_text() for text in axes.findobj(Text))


def test_the_measured_figure_shows_the_studys_curves(tmp_path: Path) -> None:
    study = figures.read_study(_study(tmp_path))
    assert study is not None and [one.seed for one in study.runs] == [0, 1]
    t_axes, sigma_axes, loss_axes = draw_measured(LABELS["en"], study).axes
    drawn = [line.get_xydata() for line in t_axes.lines]
    wanted = np.array([[0, 0.4], [9, 0.6], [19, 0.9], [29, 1.0]])
    assert sum(np.shape(one) == (4, 2) and np.allclose(np.asarray(one), wanted) for one in drawn) == 2
    assert "from step 20-22" in _texts(t_axes)
    assert "measured 0.490 to 0.520" in _texts(sigma_axes)
    heights = [tuple(np.asarray(line.get_ydata())) for line in loss_axes.lines]
    assert heights.count((3.0, 2.0, 1.5, 1.4)) == 3 and heights.count((0.1, 0.3, 0.2, 0.1)) == 3, "2 runs and the mean"
    assert "cross-entropy" in _texts(loss_axes) and "KL" in _texts(loss_axes)


@pytest.mark.parametrize(("seeds", "said"), [(1, "one run"), (2, "2 runs that differ in the order of the rows")])
def test_the_note_counts_the_runs(tmp_path: Path, seeds: int, said: str) -> None:
    study = figures.read_study(_study(tmp_path))
    assert study is not None
    figure = draw_measured(LABELS["en"], replace(study, runs=study.runs[:seeds]))
    assert [text for text in map(Text.get_text, figure.findobj(Text)) if text.endswith(f", {said}")]


@pytest.mark.parametrize("language", ["en", "ja"])
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_names_of_the_losses_touch_no_curve(language: str, seeds: int) -> None:
    """On curves as training gives them: both fall, with spikes, and the upper one ends where the lower one began."""
    step, random = np.linspace(1.0, 300.0, 151), np.random.default_rng(4)

    def falling(start: float, end: float, middle: float) -> curves.Array:
        spikes = np.where(random.random(151) < 0.1, random.random(151), 0.0)
        fallen = 1.0 / (1.0 + np.exp((middle - step) / 25.0))
        return (start + (end - start) * fallen) * (0.9 + 0.2 * random.random(151) + 0.4 * spikes)

    runs = tuple(
        MeasuredRun(
            seed=seed,
            step=step,
            t=np.linspace(0.4, 1.0, 151),
            sigma=None,
            cross_entropy=falling(1.3, 0.42, 90.0),
            kl=falling(0.3, 0.03, 160.0),
            floor_leads_from=88,
        )
        for seed in range(seeds)
    )
    study = Measured(recipe="toy", steps=300, config=TaidConfig(alpha=0.02), runs=runs)
    with matplotlib.rc_context({**STYLE, "font.family": figures.font_families()[language]}):
        figure = draw_measured(figures.words_of(language), study)
        FigureCanvasAgg(figure).draw()
        axes = figure.axes[2]
        boxes = [Text.get_window_extent(text) for text in axes.texts]
    assert len(boxes) == 2
    for line in axes.lines:
        path = axes.transData.transform_path(line.get_path())
        assert not any(path.intersects_bbox(box, filled=False) for box in boxes)


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    assert figures.read_study(tmp_path / "absent.json") is None
    assert "not measured: run make compare" in _texts(draw_measured(LABELS["en"], None).axes[0])
    ones = np.ones(3)
    run = MeasuredRun(seed=0, step=ones, t=ones, sigma=None, cross_entropy=ones, kl=ones, floor_leads_from=None)
    study = Measured(recipe="toy", steps=3, config=TaidConfig(), runs=(run,))
    assert "did not log" in _texts(draw_measured(LABELS["en"], study).axes[1])


@pytest.mark.parametrize(
    "changes",
    [{"runs": []}, {"taid": {"gone": 1}}, {"runs": [{"method": "taid", "seed": 0}]}],
    ids=["no runs", "settings of another version", "a study before there were curves"],
)
def test_a_study_without_curves_counts_as_not_measured(tmp_path: Path, changes: dict[str, object]) -> None:
    assert figures.read_study(_study(tmp_path, **changes)) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"runs": [1]}'])
def test_a_broken_study_is_one_clear_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "compare.json"
    path.write_text(text, encoding="utf-8")
    with refuses("wrong-format", wanted=str(path)):
        figures.read_study(path)


def test_the_modes_are_named_where_they_run() -> None:
    forward, _, taid, path = draw_modes(LABELS["en"]).axes
    assert "student" in _texts(forward) and "teacher" in _texts(forward)
    assert all(f"$t = {t}$" in _texts(taid) for t in ("0.2", "0.45", "1"))
    assert "mean of" in _texts(path)


def _drawn_texts(figure: Figure) -> list[Text]:
    """All text but the labels of ticks that lie beyond an axis's ends, which are kept and not drawn."""
    beyond: list[Text] = []
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            beyond += [tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]
    found = (text for text in figure.findobj() if isinstance(text, Text) and text.get_text().strip())
    return [text for text in found if text.get_visible() and text not in beyond]


@pytest.mark.parametrize("language", ["en", "ja"])
@pytest.mark.parametrize("name", ["t-simulation", "t-closed-form", "modes", "measured", "not measured"])
def test_no_text_leaves_the_picture_or_lies_on_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language: str, name: str
) -> None:
    settled = curves.taid_path(np.array([0.2, 0.45, 1.0]))
    monkeypatch.setattr(curves, "taid_path", lambda ts: [settled[int(t > 0.3) + int(t > 0.9)] for t in ts])
    study = figures.read_study(_study(tmp_path)) if name == "measured" else None
    with matplotlib.rc_context({**STYLE, "font.family": figures.font_families()[language]}):
        figure = figures.draw(name.replace("not ", ""), figures.words_of(language), study)
        FigureCanvasAgg(figure).draw()
        # Of an annotation, the text without its line.
        boxes = [(text.get_text(), Text.get_window_extent(text)) for text in _drawn_texts(figure)]
    width, height = float(figure.bbox.width), float(figure.bbox.height)
    for text, box in boxes:
        # Letters of maths reach a little less far than their box.
        assert box.x0 > -2 and box.y0 > -2 and box.x1 < width + 2 and box.y1 < height + 2, f"{text} is cut off"
    for (one, first), (other, second) in itertools.combinations(boxes, 2):
        apart = first.x1 < second.x0 or second.x1 < first.x0 or first.y1 - 2 < second.y0 or second.y1 - 2 < first.y0
        assert apart, f"{one} lies on {other}"


@pytest.mark.slow
def test_the_command_writes_every_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Where the student settles is tested above; here one place will do.
    settled = curves.taid_path(np.array([0.2]))[0]
    monkeypatch.setattr(curves, "taid_path", lambda ts: [settled] * len(ts))
    figures.main(["--study", str(_study(tmp_path)), "--out", str(tmp_path / "out")])
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(names) == 16 and {name.rsplit("-", 1)[1] for name in names} == {"en.png", "en.svg", "ja.png", "ja.svg"}
    for name in names:
        content = (tmp_path / "out" / name).read_bytes()
        if name.endswith(".png"):
            assert content.startswith(b"\x89PNG")
        else:
            assert ET.fromstring(content).tag.endswith("svg") and b"<text" not in content, "letters are outlines"
    assert "make compare" not in capsys.readouterr().out


def test_the_same_picture_is_the_same_bytes(tmp_path: Path) -> None:
    with matplotlib.rc_context(STYLE):
        for name in ("one", "two"):
            figures.save(draw_measured(LABELS["en"], None), tmp_path / name)
    for form in ("png", "svg"):
        assert (tmp_path / f"one.{form}").read_bytes() == (tmp_path / f"two.{form}").read_bytes()


def test_without_the_font_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(figures, "japanese_font", lambda: None)
    monkeypatch.setattr(figures, "save", lambda figure, stem: None)
    monkeypatch.setattr(figures, "draw", lambda *_: None)
    figures.main(["--study", str(tmp_path / "absent.json"), "--out", str(tmp_path)])
    first, *rest = capsys.readouterr().out.splitlines()
    assert "modes-en" in first and "-ja" not in first
    assert [line for line in rest if "Japanese" in line] == [
        "no Japanese figures: no font; next: .venv/bin/python -m pip install matplotlib-fontja"
    ]
    assert any("make compare" in line for line in rest)


def test_only_the_drawing_modules_load_matplotlib() -> None:
    found: set[str] = set()
    for path in (
        path
        for package in ("studies", "recipes", "distill", "instruct", "export", "eval", "common")
        for path in (ROOT / package).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "matplotlib" for name in names):
                found.add(path.relative_to(ROOT).as_posix())
    assert found == {"studies/figures.py", "studies/figure_panels.py"}
