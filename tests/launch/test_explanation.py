"""What is said about where a run's time went."""

from __future__ import annotations

import json

import pytest

from tests.support.histories import Story
from zerofleet.cluster.goodput.account import Cause
from zerofleet.cluster.goodput.ledger import Ledger
from zerofleet.launch.explanation import Explanation, happenings_of


def explanation(story: Story, *causes: Cause) -> Explanation:
    ledger = Ledger.of(story.history())
    return Explanation("a", "FINISHED", ledger, happenings_of(ledger), causes)


def killed() -> Story:
    return Story().driver().start().steps(10).kill().start(3.0, from_step=7).steps(13).finish()


def test_the_chain_the_labels_and_the_causes():
    cheap = Cause("slow rank", "rank 1 is slow", 3.0, remedy="look at its node")
    cause = Cause("failure: node", "1 x", 6.0, "checkpoint.snapshot_interval_steps=1", 2.0)
    lines = explanation(killed(), cause, cheap).text().splitlines()
    assert lines[0] == "run a: FINISHED, 20 steps in 39s, 3 steps done again"
    assert lines[1].startswith("goodput 50.8%") and "20 steps x 1 s (their median)" in lines[1]
    chain = [line.strip().split("  ", 1)[1] for line in lines[4:8]]
    assert chain == [
        "attempt 1 on 2 ranks from the beginning; 3.2 s of it were lost",
        "rank 1 was killed (SIGKILL) by something outside the run. Trying again",
        "attempt 2 on 2 ranks from the beginning",
        "FINISHED",
    ]
    (row,) = (line.split() for line in lines if line.strip().startswith("lost work"))
    assert row == ["lost", "work", "3.2", "s", "(8%)", "3.2", "0.0"]
    assert "  1. failure: node: 1 x" in lines and "     look at its node" in lines
    assert lines[-1] == "checkpoint.snapshot_interval_steps=1 would have saved most: about 2.0 s (5% of the run)"


def test_a_run_in_which_nothing_stands_out_and_one_that_no_setting_would_have_helped():
    assert explanation(killed()).text().endswith("\nnothing stands out\n")
    text = explanation(killed(), Cause("user bug", "b", 5.0)).text()
    assert text.endswith("\nno setting would have saved any of it\n")


def test_a_long_chain_is_cut_and_says_so():
    story = Story().driver().start()
    for number in range(60):
        story.say("incident", message=f"number {number}\nmore", **{"class": "node"})
    lines = explanation(story.steps(1).finish()).text().splitlines()
    shown = [line for line in lines if "incident: number" in line]
    assert len(shown) < 60 and shown[-1].endswith("incident: number 59")
    assert any("before: --json has them" in line for line in lines)


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_the_verb(zerofleet, drive, arguments):
    drive("recover")
    assert zerofleet("submit", "recipe.yaml", "run.name=a")[0] == 0
    code, out, _ = zerofleet("explain", "a", *arguments)
    assert code == 0
    if not arguments:
        assert "run a: FINISHED, 3 steps" in out and "2 steps done again" in out and "rank 1 was killed" in out
        return
    fields = json.loads(out)
    assert (fields["run"], fields["state"], fields["ledger"]["counted_steps"]) == ("a", "FINISHED", 3)
    assert [h["kind"] for h in fields["happenings"]] == ["attempt", "verdict", "attempt", "state"]
    assert sum(fields["ledger"]["labels"].values()) == pytest.approx(fields["ledger"]["wall_s"])
    assert {"causes", "best_setting"} <= set(fields)


def test_status_shows_goodput(zerofleet, drive):
    drive("finish")
    zerofleet("submit", "recipe.yaml", "run.name=a")
    shown = json.loads(zerofleet("status", "a", "--json")[1])
    assert 0 < shown["goodput"] < 1
    assert f"goodput        {shown['goodput']:.0%} of " in zerofleet("status", "a")[1]
