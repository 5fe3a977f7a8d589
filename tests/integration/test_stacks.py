"""The stacks of a run that trains."""

from __future__ import annotations

import pytest

from tests.support.cli import Cli, losses, wait_for_end, wait_for_step

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200)]


def test_what_every_rank_does_is_shown_and_the_run_goes_on(tmp_path, tiny_corpus, tiny_cache):
    cli = Cli(tmp_path, tiny_corpus)
    assert cli.submit("a", "train.steps=4000", "--detach").returncode == 0
    run = cli.run("a")
    wait_for_step(run, 3)
    shown = cli("stacks", "a")
    assert shown.returncode == 0, shown.stderr
    zero, one = shown.stdout.split("==> rank ")[1:]
    assert zero.startswith("0, ") and one.startswith("1, ")
    assert all("trainer/loop.py" in text for text in (zero, one)), shown.stdout
    assert cli("stacks", "a", "--rank", "7").returncode == 4
    wait_for_step(run, max(losses(run)) + 2)
    assert cli("stop", "a").returncode == 0 and wait_for_end(cli, "a") == "STOPPED"
    assert len(run.attempts()) == 1
    late = cli("stacks", "a")
    assert late.returncode == 1 and "has no ranks: STOPPED" in late.stderr
    assert [request["action"] for _, request in run.requests()] == ["stacks", "stacks", "stop"]
