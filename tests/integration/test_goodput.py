"""The accounts of real runs: every second has a label, on every rank and in every attempt."""

from __future__ import annotations

import json
import random
import statistics
from itertools import pairwise

import pytest

from tests.support.accounts import account
from tests.support.cli import Cli, kill_rank_at, wait_for_end

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

STEPS = 40
LONG = [f"train.steps={STEPS}", "checkpoint.interval_steps=10", "checkpoint.snapshot_interval_steps=10"]


@pytest.fixture(scope="module")
def cli(tmp_path_factory, tiny_corpus, tiny_cache):
    return Cli(tmp_path_factory.mktemp("cli"), tiny_corpus)


def test_an_unbroken_run(cli):
    done = cli.submit("unbroken", *LONG)
    assert done.returncode == 0, done.stdout + done.stderr
    run = cli.run("unbroken")
    ledger = account(run)
    steps = [record for record in run.read("metrics") if record["kind"] == "step"]
    assert all(ledger.labels[label] == 0 for label in ("lost work", "detect", "restart"))
    assert all(
        ledger.labels[label] > 0 for label in ("queue", "prepare", "start", "step", "data wait", "save stall", "eval")
    )
    assert ledger.labels["data wait"] == pytest.approx(sum(step["data"]["data_s"] for step in steps), rel=0.01)
    stalled = [step["step"] for step in steps if step["data"]["stall_s"] > 0]
    assert stalled[0] == 11 and len(stalled) < STEPS / 4, (
        "a snapshot is taken after a step, and the next one waits for it"
    )
    ends = [step["start"] + step["duration_s"] for step in steps]
    median_s = statistics.median(b - a for a, b in pairwise(ends))
    assert ledger.goodput() == pytest.approx(STEPS * median_s / ledger.wall_s)
    zero, one = ledger.rank_times[1, 0], ledger.rank_times[1, 1]
    assert zero.steps == one.steps == STEPS and min(one.own_s, one.data_s, one.stall_s) > 0
    assert "Where the time went" in run.storage.read("report.html").decode(), "the driver leaves it"
    shown = json.loads(cli("status", "unbroken", "--json").stdout)["goodput"]
    assert shown == pytest.approx(ledger.goodput())


def test_a_killed_run_loses_the_steps_that_it_repeats(cli):
    assert cli.submit("killed", *LONG, "--detach").returncode == 0
    run = cli.run("killed")
    kill_rank_at(run, 1, 15, random.Random(1))
    assert wait_for_end(cli, "killed") == "FINISHED"
    ledger = account(run)
    start = run.attempts()[1].start_step
    steps = [record for record in run.read("metrics") if record["kind"] == "step"]
    twice = [step for step in steps if step["attempt"] == 1 and step["step"] > start]
    again = {step["step"] for step in steps if step["attempt"] == 2}
    assert twice and {step["step"] for step in twice} <= again
    repeated_s = sum(step["duration_s"] for step in twice)
    assert ledger.repeated_s == pytest.approx(repeated_s, rel=0.01)
    cut_s = ledger.labels["lost work"] - repeated_s
    longest_s = max(step["duration_s"] for step in steps)
    assert -0.01 * repeated_s <= cut_s < 2 * longest_s, "what was begun of the step in which the rank was killed"
    assert ledger.labels["detect"] > 0 and ledger.labels["restart"] > 0
    assert len(ledger.history.counted) == STEPS
