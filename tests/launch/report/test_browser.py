"""The page in a real browser: nothing is fetched, nothing complains, nothing is wider than the screen."""

from __future__ import annotations

import pytest

from tests.launch.report.test_page import HOSTILE, killed, report
from tests.support import browser
from tests.support.sample_report import sample
from zerofleet.launch.report.page import page

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not browser.is_there(), reason=f"{browser.PROGRAM} is not installed: apt-get install chromium"),
]
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
OUTSIDE = """[...document.querySelectorAll('section, h1, h2, p, figure, svg, .event, .facts div, .x span, .y span')]
  .filter(e => !e.closest('.wide')).map(e => [e, e.getBoundingClientRect()])
  .filter(([e, box]) => box.right > innerWidth + 0.5 || box.left < -0.5).map(([e]) => e.outerHTML.slice(0, 200))"""
EMPTY = "[...document.querySelectorAll('svg')].filter(e => e.getBoundingClientRect().height < 5).length"
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def chromium():
    with browser.Browser() as program:
        yield program


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page with everything, and one whose words are long and hostile."""
    folder = tmp_path_factory.mktemp("pages")
    story = killed()
    story.say("incident", message=f"/a/very/long/path{'/and/longer' * 40} {HOSTILE} {'x' * 400}", **{"class": "node"})
    (folder / "sample.html").write_text(page(sample()))
    (folder / "hostile.html").write_bytes(page(report(story, "n" * 200)).encode())
    return folder


@pytest.mark.parametrize("name", ["sample", "hostile"])
@pytest.mark.parametrize(("width", "is_dark"), [(1440, False), (1440, True), (390, False), (390, True)])
def test_it_is_shown(chromium, pages, name, width, is_dark):
    path = pages / f"{name}.html"
    chromium.open(path, width, is_dark=is_dark)
    assert chromium.complaints == []
    assert chromium.requests == [path.as_uri()], "the page itself, and nothing else"
    assert chromium.value("innerWidth") == width and chromium.value(OVERFLOW) == 0
    assert chromium.value(OUTSIDE) == []
    assert chromium.value(EMPTY) == 0 and chromium.value("document.querySelectorAll('svg').length") > 8
    red = int(chromium.value(BACKGROUND).split("(")[1].split(",")[0])
    assert red < 64 if is_dark else red > 192


def test_the_browser_would_have_complained(chromium, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text('<img src="absent.png"><p style="width:3000px">x<script>console.error("a"); missing()</script>')
    chromium.open(bad, 390)
    assert len(chromium.complaints) >= 2 and len(chromium.requests) == 2 and chromium.value(OVERFLOW) > 0
