"""A run whose hours, or money, are over before it has begun, and the same run with more of them."""

import pytest

from tests.support.cli import Cli, assert_audited, positions

pytestmark = [pytest.mark.integration, pytest.mark.further, pytest.mark.timeout(600)]


def test_a_run_ends_when_its_hours_are_over_and_goes_on_with_more(tmp_path, tiny_corpus, tiny_cache):
    cli = Cli(tmp_path, tiny_corpus)
    done = cli.submit("short", "cluster.max_hours=0.000001", "train.steps=4", "checkpoint.export=false")
    assert done.returncode == 3, done.stdout + done.stderr
    run = cli.run("short")
    last = [event for event in run.events() if event.kind == "state"][-1]
    assert last.data["to"] == "STOPPED" and "cluster.max_hours is 1e-06" in last.data["why"]
    assert [event.data["class"] for event in run.events() if event.kind == "verdict"] == ["time limit"]
    dear = cli("resume", "short", "cluster.max_hours=0", "cluster.max_cost=0.000001", "cluster.price_per_hour=2")
    assert dear.returncode == 3, dear.stdout + dear.stderr
    last = [event for event in run.events() if event.kind == "state"][-1]
    assert last.data["to"] == "STOPPED" and "cluster.max_cost is 1e-06" in last.data["why"]
    more = cli("resume", "short", "cluster.max_hours=1", "cluster.max_cost=0")
    assert more.returncode == 0, more.stdout + more.stderr
    assert positions(run) == list(range(4 * 8))
    assert_audited(run, 4)
