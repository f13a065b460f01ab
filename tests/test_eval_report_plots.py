"""The report's plots and numbers: geometry against coordinates computed by hand, wording against examples."""

import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.report import wording
from eval.report.plots import Curve, nice_ticks, plot_of, smooth, thin, tick_label

RANGES = st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)).map(sorted)


@given(ends=RANGES, count=st.integers(2, 8))
def test_ticks_enclose_the_range_in_round_even_steps(ends: list[float], count: int) -> None:
    low, high = ends
    ticks = nice_ticks(low, high, count=count)
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert ticks[0] <= low + slack and ticks[-1] >= high - slack
    gaps = [later - earlier for earlier, later in itertools.pairwise(ticks)]
    assert max(gaps) - min(gaps) <= slack
    mantissa = gaps[0] / 10 ** math.floor(math.log10(gaps[0]) + 1e-9)
    assert any(mantissa == pytest.approx(step, rel=1e-3) for step in (1, 2, 5))
    assert 2 <= len(ticks) <= 2 * count + 2


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.9, 7.6, ["0", "2", "4", "6", "8"]),
        (0.0, 1.0, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (1, 1600, ["0", "500", "1,000", "1,500", "2,000"]),
        (0.01, 0.04, ["0.01", "0.02", "0.03", "0.04"]),
    ],
)
def test_tick_labels(low: float, high: float, labels: list[str]) -> None:
    ticks = nice_ticks(low, high, count=4)
    assert [tick_label(tick, ticks) for tick in ticks] == labels


def test_a_path_runs_through_its_points() -> None:
    plot = plot_of("loss", [Curve(label="a", points=[(0, 4.0), (5, 1.0), (10, 0.0)])], summary="it falls")
    (path,) = plot.paths
    # y upwards from 0 to 4 becomes 1000 downwards to 0.
    assert path.data == "M0.0 0.0L500.0 750.0L1000.0 1000.0"
    assert [(tick.label, tick.percent) for tick in plot.y_ticks] == [
        ("0", 100),
        ("1", 75),
        ("2", 50),
        ("3", 25),
        ("4", 0),
    ]
    assert [(tick.label, tick.percent) for tick in plot.x_ticks] == [
        ("0", 0),
        ("2", 20),
        ("4", 40),
        ("6", 60),
        ("8", 80),
        ("10", 100),
    ]


def test_dots_share_the_axes_of_the_line() -> None:
    line = Curve(label="training", points=[(0, 0.0), (10, 10.0)])
    dots = Curve(label="validation", points=[(5, 5.0), (10, 10.0)], kind="dots")
    assert plot_of("loss", [line, dots], summary="").paths[1].data == "M500.0 500.0h0M1000.0 0.0h0"


def test_one_point_and_one_level_can_be_drawn() -> None:
    assert plot_of("t", [Curve(label="t", points=[(3, 1.0)])], summary="").paths[0].data == "M500.0 500.0"
    assert (
        plot_of("t", [Curve(label="t", points=[(1, 2.0), (2, 2.0)])], summary="").paths[0].data
        == "M0.0 500.0L1000.0 500.0"
    )


def test_a_value_that_is_not_finite_is_left_out() -> None:
    plot = plot_of("loss", [Curve(label="a", points=[(0, 1.0), (1, math.nan), (2, 0.0)])], summary="")
    assert "nan" not in plot.paths[0].data and plot.paths[0].data.count("L") == 1


@given(values=st.lists(st.floats(-10, 10), min_size=1, max_size=300), at_most=st.integers(1, 50))
def test_thinning_keeps_the_mean_and_invents_nothing(values: list[float], at_most: int) -> None:
    points = list(enumerate(values))
    kept = thin(points, at_most=at_most)
    assert len(kept) == min(len(points), at_most)
    assert min(values) - 1e-9 <= min(y for _, y in kept) and max(y for _, y in kept) <= max(values) + 1e-9
    xs = [x for x, _ in kept]
    assert xs == sorted(xs)
    if len(points) % at_most == 0:
        assert math.fsum(y for _, y in kept) / len(kept) == pytest.approx(math.fsum(values) / len(values), abs=1e-9)


def test_smoothing_is_the_centred_mean() -> None:
    points = [(0, 0.0), (1, 3.0), (2, 6.0), (3, 3.0), (4, 12.0)]
    assert smooth(points, window=1) == [(0, 0.0), (1, 3.0), (2, 4.0), (3, 7.0), (4, 12.0)]
    assert smooth(points, window=0) == points


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (wording.number, 1234.5, "1,234"),
        (wording.number, 0.03174, "0.0317"),
        (wording.number, 3.2e-6, "3.2e-6"),
        (wording.number, 1.4234, "1.42"),
        (wording.number, 0, "0"),
        (wording.count, 21734.0, "21,734"),
        (wording.short_count, 999, "999"),
        (wording.short_count, 246_000, "246k"),
        (wording.short_count, 999_950, "1M"),
        (wording.short_count, 12_345_678, "12.3M"),
        (wording.size, 13_612_448, "13.6 MB"),
        (wording.size, 617, "617 B"),
        (wording.size, 999_700, "1 MB"),
        (wording.duration, 6.07, "6.1 s"),
        (wording.duration, 59.7, "1 min 00 s"),
        (wording.duration, 437, "7 min 17 s"),
        (wording.duration, 7800, "2 h 10 min"),
        (wording.percent, 0.7321, "73.2"),
        (wording.percent_interval, (0.7, 0.76), "70.0 to 76.0"),
        (wording.signed, -0.611, "\N{MINUS SIGN}0.611"),
        (wording.signed, 0.37, "+0.370"),
    ],
)
def test_numbers_are_written_for_people(function: object, value: object, text: str) -> None:
    assert callable(function)
    assert function(value) == text
    assert function(None) == wording.NOT_MEASURED


@given(value=st.floats(1, 1e15))
def test_short_counts_and_sizes_are_short_and_close(value: float) -> None:
    units = {"": 1, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
    found = re.fullmatch(r"([\d.,]+)([kMBT]?)", wording.short_count(value))
    assert found
    assert float(found[1].replace(",", "")) * units[found[2]] == pytest.approx(value, rel=6e-3, abs=0.5)
    assert len(wording.size(value)) <= 9


@given(text=st.text())
def test_markdown_stays_on_its_line_and_in_its_cell(text: str) -> None:
    written = wording.markdown(text)
    assert "\n" not in written and "\r" not in written and "<" not in written
    assert not re.search(r"(?<!\\)(?:\\\\)*\|", written)
