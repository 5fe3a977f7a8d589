"""Lines lie where their values say."""

from __future__ import annotations

import re

import pytest

from zerofleet.launch.report.charts import HEIGHT, WIDTH, Line, chart, number, seconds, share
from zerofleet.launch.report.series import Point, downsample


def points_of(drawing: str, kind: str) -> list[tuple[float, float]]:
    (path,) = re.findall(rf'<path class="{kind} c1" d="M([^"Z]*)Z?"', drawing)
    return [(float(x), float(y)) for x, y in (pair.split(" ") for pair in path.split("L"))]


def test_the_largest_is_at_the_top_the_least_at_the_bottom():
    drawing = chart("Loss", [Line("training", downsample([(1, 9.0), (2, 7.0), (3, 5.0)]))])
    assert points_of(drawing, "line") == [(0, 4), (WIDTH / 2, HEIGHT / 2), (WIDTH, HEIGHT - 4)]
    levels = re.findall(r'<span style="top:([\d.]+)%">([^<]*)</span>', drawing)
    assert [name for _, name in levels] == ["5", "6", "7", "8", "9"] and "band" not in drawing
    assert [float(top) * HEIGHT / 100 for top, _ in levels] == pytest.approx([236, 178, 120, 62, 4], abs=0.1)
    assert 'aria-label="Loss: training ends at 5"' in drawing


def test_a_band_goes_around_what_was_summed_up():
    line = Line("x", [Point(0, 2.0, 1.0, 3.0), Point(10, 2.0, 2.0, 2.0)])
    assert points_of(chart("a", [line]), "band") == [(0, 4), (WIDTH, 120), (WIDTH, 120), (0, HEIGHT - 4)]


def test_marks_outside_are_not_drawn_and_a_flat_line_divides_by_nothing():
    drawing = chart("a", [Line("x", downsample([(5, 1.0), (9, 1.0)]))], marks=[2, 7], from_zero=True)
    assert drawing.count("class=mark") == 1 and 'd="M500 0V240"' in drawing
    assert points_of(drawing, "line") == [(0, 4), (WIDTH, 4)]


def test_steps_below_are_whole_and_stay_inside():
    drawing = chart("a", [Line("x", downsample([(step, 1.0 + step) for step in range(1, 101)]))])
    below = re.findall(r'<span( class=\w+)? style="left:([\d.]+)%">([^<]*)</span>', drawing.split("class=x>")[1])
    assert [name for *_, name in below] == ["25", "50", "75", "100"]
    assert below[-1][0] == " class=last" and float(below[-1][1]) == 100


def test_without_points_there_is_no_chart_and_one_point_is_a_dot():
    assert chart("a", [Line("x", [])]) == ""
    assert 'class="dots c1"' in chart("a", [Line("x", downsample([(1, 1.0)]))])


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (12345.6, "12,346"),
        (3.14159, "3.142"),
        (0.00012, "0.00012"),
        (1.2e-5, "1.2e-05"),
        (float("nan"), "nan"),
        (-0.5, "-0.5"),
    ],
)
def test_numbers_are_short(value, shown):
    assert number(value) == shown


def test_shares_and_seconds():
    assert [share(value) for value in (0.4251, 0.0, 30.0)] == ["42.51 %", "0 %", "3000 %"]
    assert [seconds(value) for value in (0, 0.0254, 1.5)] == ["0", "25.4 ms", "1.5 s"]
