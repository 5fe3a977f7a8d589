"""A result's page: what it says, and where the picture puts what was measured."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from zerofleet.benchmarks.page import markdown_of, svg_of, write_pages
from zerofleet.benchmarks.record import Series

from .test_comparison import result

pytestmark = pytest.mark.timeout(30)


def circles(svg):
    return [
        (float(each.get("cx")), float(each.get("cy")), each.get("class"))
        for each in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}circle")
    ]


def test_the_table_has_every_figure():
    steps = Series.of("step | small", "s", "lower", [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6])
    once = Series.of("bytes sent", "bytes", None, [123456.0])
    page = markdown_of(result(steps, once))
    assert "| step \\| small | s | lower | 7 | 1.3 | 1 to 1.6 | 23.1% |" in page
    assert "| bytes sent | bytes |  | 1 | 123,456 |  |  |" in page
    assert "2 cores" in page


def test_values_lie_by_their_share_of_the_median_in_their_order():
    svg = svg_of(result(Series.of("a", "s", "lower", [1.0, 0.9, 1.1]), Series.of("b", "B", None, [2e9, 2e9, 2.2e9])))
    dots = circles(svg)
    assert len(dots) == 6
    middle = dots[0][0]
    assert dots[1][0] < middle < dots[2][0] and dots[2][0] - middle == pytest.approx(middle - dots[1][0], abs=0.2)
    assert dots[5][0] == dots[2][0] and dots[3][0] == middle, "one scale for all"
    assert dots[0][1] < dots[1][1] < dots[2][1] < dots[3][1], "in the order in which they were measured"


def test_what_lies_beyond_the_picture_is_at_its_edge_and_marked():
    dots = circles(svg_of(result(Series.of("a", "s", "lower", [1.0, 1.0, 9.0]))))
    assert [kind for _, _, kind in dots] == [None, None, "out"]
    assert max(x for x, _, _ in dots) <= 880


def test_names_are_no_markup():
    svg = svg_of(result(Series.of("a<b & c", "s", None, [1.0, 2.0])))
    assert any(each.text == "a<b & c" for each in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"))


def test_nothing_is_drawn_of_single_values(tmp_path):
    write_pages(result(Series.of("a", "s", "lower", [1.0])), tmp_path / "found.json")
    assert [path.name for path in tmp_path.iterdir()] == ["found.md"]
    assert not re.search(r"!\[", (tmp_path / "found.md").read_text())


def test_both_pages_lie_beside_the_result(tmp_path):
    write_pages(result(Series.of("a", "s", "lower", [1.0, 1.1])), tmp_path / "found.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.md", "found.svg"]
    assert "](found.svg)" in (tmp_path / "found.md").read_text()


def test_what_a_benchmark_has_drawn_is_its_page_and_others_files_stay(tmp_path, capsys):
    (tmp_path / "found.svg").write_text("mine")
    for words in ("first", "second"):
        write_pages(result(Series.of("a", "s", "lower", [1.0, 1.1])), tmp_path / "found.json", {".md": f"# {words}\n"})
    page = (tmp_path / "found.md").read_text()
    assert page.splitlines()[1] == "# second" and "](found.svg)" in page
    assert (tmp_path / "found.svg").read_text() == "mine"
    assert "found.svg was not made by `zerofleet bench`" in capsys.readouterr().err
