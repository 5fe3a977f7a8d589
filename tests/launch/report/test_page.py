"""One self-contained page, whatever was said in the run."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from tests.support.histories import Story
from zerofleet.cluster.config import ClusterConfig
from zerofleet.cluster.goodput.account import Account
from zerofleet.cluster.goodput.causes import explain
from zerofleet.cluster.goodput.ledger import Ledger
from zerofleet.cluster.goodput.timeline import LABELS
from zerofleet.launch.explanation import Explanation, happenings_of
from zerofleet.launch.report.page import Report, page
from zerofleet.launch.report.style import COLOURS
from zerofleet.trainer.config import TrainConfig

HOSTILE = """</script></pre></title><img src=x onerror="alert(1)">'"&<svg/onload=alert(2)>\x00\x1b[31m\ud800"""
VOID = {"meta", "br"}


class Parsed(HTMLParser):
    """Tags, attributes and text; refuses what is not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes) -> None:
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += data


def report(story: Story, name: str = "a", job_yaml: str = "run: {name: a}\n") -> Report:
    ledger = Ledger.of(story.history())
    config = TrainConfig.model_validate(
        {
            "model": {"config": {"model_type": "llama"}},
            "data": {"files": ["python-stdlib"]},
            "train": {"steps": 100, "global_batch_size": 8, "micro_batch_size": 4},
        }
    )
    causes = tuple(explain(Account(ledger, config, ClusterConfig())))
    return Report(Explanation(name, "FINISHED", ledger, happenings_of(ledger), causes), 100, 8, job_yaml)


def killed() -> Story:
    story = Story().driver()
    story.say("plan", memory_bytes=2**30, parts={"weights": 2**29, "moments": 2**28}, moment="loss", ranks=2)
    story.start().eval(1.0).steps(50, 1.0, data_s=0.1, grad_norm=1.0, tokens_per_second=512.0)
    story.ranks([0.3, 0.9], [0.1, 0.1], [0.0, 0.0], steps=50, memory_bytes=[2**29, 3 * 2**29])
    story.say("checkpoint", phase="save", bytes=2**21)
    story.say("environment", processor="Z80", cores=2, packages={"torch": "2.13"}, load_average=(0.5, 0.25))
    return story.kill().start(3.0, from_step=40).steps(20, 1.0).finish()


def test_everything_is_on_the_page():
    html = page(report(killed()))
    parsed = Parsed(html)
    for title in (
        "Why",
        "Memory against the plan",
        "Training",
        "Where the time went",
        "What happened",
        "Checkpoints",
        "Samples",
        "Configuration",
        "Environment",
    ):
        assert title in parsed.text
    for chart in ("Loss", "Learning rate", "Throughput", "MFU", "Step time", "Gradient norm"):
        assert f"<figcaption><b>{chart}</b>" in html, chart
    for fact in (
        "60 of 100",
        "480",
        "FINISHED",
        "Z80",
        "torch 2.13",
        "0.5, 0.25",
        "was killed (SIGKILL)",
        "lost work",
        "planned per rank",
        "run: {name: a}",
    ):
        assert fact in parsed.text, fact
    assert "900.0 slow" in parsed.text and "300.0 slow" not in parsed.text, "the slow rank"
    cells = " ".join(re.findall(r"<td class=n>(?:<[^>]*>)?([^<]*)", page(report(killed()))))
    assert re.search(r"50\s*1\s*2\.0", cells), "the checkpoint"
    assert re.search(r"1\.5\s*150%\s*0\.5\s*50%", cells), "what the ranks had, and which share of the plan that is"


def test_nothing_is_fetched_and_nothing_runs():
    html = page(report(killed()))
    parsed = Parsed(html)
    assert not {"script", "img", "link", "iframe", "object", "embed", "base", "form", "a"} & set(parsed.tags)
    assert not {"src", "href", "xlink:href", "srcset", "action"} & {name for name, _ in parsed.attributes}
    assert "url(" not in html and "@import" not in html and "://" not in html


def test_light_dark_and_phones():
    html = page(report(killed()))
    assert "@media(prefers-color-scheme:dark)" in html and "color-scheme:light dark" in html
    assert '<meta name="viewport" content="width=device-width,initial-scale=1">' in html
    assert not re.search(r'<svg[^>]* width="\d', html), "drawings take the width that there is"
    assert {label.replace(" ", "-") for label in LABELS} == set(COLOURS)


def test_hostile_text_stays_text():
    story = Story(nodes=(HOSTILE,)).driver().start().steps(3)
    story.say("incident", message=HOSTILE, **{"class": "node"})
    story.say("info", message=HOSTILE)
    story.say("environment", **{HOSTILE: HOSTILE, "versions": {HOSTILE: [HOSTILE]}})
    story.fail("node", HOSTILE).start().steps(2).state("FAILED", why=HOSTILE)
    hostile = report(story, HOSTILE, job_yaml=f"name: {HOSTILE}")
    html = page(replace(hostile, explanation=replace(hostile.explanation, state=HOSTILE)))
    parsed, plain = Parsed(html), Parsed(page(report(killed())))
    assert set(parsed.tags) <= set(plain.tags) | {"pre", "ul", "li"}
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert parsed.text.count('<img src=x onerror="alert(1)">') >= 8, "it is shown as it was said"
    html.encode()
    assert "\x00" not in html and "\x1b" not in html


@pytest.mark.parametrize(
    "story", [Story(), Story().driver(), Story().driver().start()], ids=["nothing", "driver", "start"]
)
def test_a_run_that_has_hardly_begun_has_a_page(story):
    parsed = Parsed(page(report(story)))
    assert "0 of 100" in parsed.text and "Training" not in parsed.text


def test_a_run_of_a_hundred_thousand_steps_is_under_two_megabytes():
    story = Story(world_size=8).driver().start()
    for number in range(100):
        story.steps(
            1000,
            0.3 + 0.001 * number,
            data_s=0.01,
            stall_s=0.02,
            grad_norm=1.0 + number,
            tokens_per_second=1e4 / (number + 1),
        )
        story.say("checkpoint", phase="save", bytes=2**30)
        story.say("incident", message=f"number {number}: {'x' * 300}", **{"class": "straggler"})
        if number % 3 == 0:
            story.kill().start(3.0, from_step=story.step - 5)
    html = page(report(story.finish()))
    assert len(html.encode()) < 2_000_000
    Parsed(html)
