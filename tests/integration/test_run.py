"""Whole runs as a user starts them: recovery, stop and resume, damage, all through the command line and a real Ray."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.cli import Cli, assert_audited, kill_rank_at, losses, positions, wait_for_end
from zerofleet.cluster.snapshot_writer import snapshot_folder
from zerofleet.launch.drivers import driver_records
from zerofleet.trainer.reporter import RECENT_EVENTS

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

STEPS = 120
LONG = [f"train.steps={STEPS}", "checkpoint.interval_steps=7"]


@pytest.fixture(scope="module")
def cli(tmp_path_factory, tiny_corpus, tiny_cache):
    return Cli(tmp_path_factory.mktemp("cli"), tiny_corpus)


@pytest.fixture(scope="module")
def unbroken(cli):
    done = cli.submit("unbroken", *LONG)
    assert done.returncode == 0, done.stdout + done.stderr
    assert positions(cli.run("unbroken")) == list(range(STEPS * 8))
    return losses(cli.run("unbroken"))


@pytest.mark.parametrize("seed", range(5))
def test_kill_9_of_a_rank_at_a_random_step_changes_nothing(cli, unbroken, seed):
    draw = random.Random(seed)
    rank, step = draw.randrange(2), draw.randrange(1, STEPS // 2)  # a step takes 10 ms, and seeing it as long
    print(f"seed {seed}: kill -9 of rank {rank} after step {step}")
    name = f"killed-{seed}"
    assert cli.submit(name, *LONG, "--detach").returncode == 0
    kill_rank_at(cli.run(name), rank, step, draw)
    assert wait_for_end(cli, name) == "FINISHED"
    run = cli.run(name)
    assert [a.attempt for a in run.attempts()] == [1, 2]
    verdicts = [e.data["sentence"] for e in run.events() if e.kind == "verdict"]
    assert len(verdicts) == 1 and f"rank {rank}" in verdicts[0] and "SIGKILL" in verdicts[0]
    assert losses(run) == unbroken, "bitwise"
    assert positions(run) == list(range(STEPS * 8)), "every position once"
    assert_audited(run, STEPS)


@pytest.mark.further
def test_steps_that_ranks_did_after_their_driver_was_killed_are_all_in_the_ledger(cli):
    """More of them than a snapshot remembers."""
    steps = 600
    kept = ["checkpoint.interval_steps=0", "checkpoint.snapshot_interval_steps=1", "checkpoint.export=false"]
    assert cli.submit("orphaned", f"train.steps={steps}", *kept, "--detach").returncode == 0
    run = cli.run("orphaned")
    wait_until(lambda: max(losses(run), default=0) >= 20)
    os.kill(driver_records(run)[-1].pid, signal.SIGKILL)
    heard = max(losses(run))
    (told,) = Path(snapshot_folder(run)).glob("results-*.newer.jsonl")
    wait_until(lambda: len(told.read_bytes().splitlines()) > heard + 2 * RECENT_EVENTS)
    resumed = cli("resume", "orphaned")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    second = run.attempts()[1]
    assert second.from_memory and second.start_step > heard + RECENT_EVENTS, second
    assert sorted(losses(run)) == list(range(1, steps + 1))
    assert positions(run) == list(range(steps * 8)), "every position once"
    assert_audited(run, steps)


def wait_until(is_so: Callable[[], bool], timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


SLOW = ["train.steps=60", "checkpoint.interval_steps=4", "train.global_batch_size=32", "train.learning_rate=0.003"]
"""Steps of a tenth of a second, so that a stop finds a run that still has steps to do."""


@pytest.fixture(scope="module")
def slow_unbroken(cli):
    assert cli.submit("slow", *SLOW).returncode == 0
    return losses(cli.run("slow"))


def stop_in_the_middle(cli: Cli, name: str, attempt: int = 1) -> None:
    """A stop once the attempt has done three steps.

    It is asked for from here: a busy machine may start a command for longer than the steps that are left take. The command waits for the end.
    """
    run = cli.run(name)
    wait_until(lambda: sum(r["attempt"] == attempt and r["kind"] == "step" for r in run.read("metrics")) >= 3)
    run.request("stop")
    stopped = cli("stop", name)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr


def test_stop_and_resume_over_world_sizes_and_stages(cli, slow_unbroken):
    """(2 ranks, stage 1) -> (1, 3) -> (3, 2) -> (2, 0)."""
    chain = [(2, 1), (1, 3), (3, 2), (2, 0)]
    for number, (ranks, stage) in enumerate(chain):
        last = number == len(chain) - 1
        overrides = [f"cluster.ranks_per_node={ranks}", f"train.zero_stage={stage}", *([] if last else ["--detach"])]
        started = cli.submit("chain", *SLOW, *overrides) if number == 0 else cli("resume", "chain", *overrides)
        assert started.returncode == 0, started.stdout + started.stderr
        if not last:
            stop_in_the_middle(cli, "chain", attempt=number + 1)
    run = cli.run("chain")
    assert [(a.world_size, a.zero_stage) for a in run.attempts()] == chain
    starts = [a.start_step for a in run.attempts()]
    assert 0 == starts[0] < starts[1] < starts[2] < starts[3] < 60
    assert losses(run) == pytest.approx(slow_unbroken, rel=1e-3)
    assert positions(run) == list(range(60 * 32))
    assert_audited(run, 60)
    assert run.storage.exists("export/model.safetensors")


def test_resume_says_which_checkpoint_is_damaged_and_takes_the_one_before(cli, slow_unbroken):
    assert cli.submit("damaged", *SLOW, "--detach").returncode == 0
    stop_in_the_middle(cli, "damaged")
    run = cli.run("damaged")
    newest, before = run.checkpoints()[-1], run.checkpoints()[-2]
    file = run.storage.local_path(newest.rank_file(1, 2))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    resumed = cli("resume", "damaged")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "rank-00001-of-00002.safetensors: block 0" in resumed.stdout
    assert run.attempts()[-1].start_step == before.step
    assert losses(run) == slow_unbroken
    assert positions(run) == list(range(60 * 32))


@pytest.mark.further
def test_of_two_resumes_at_once_one_goes_on_and_the_other_says_who_does(cli, slow_unbroken):
    assert cli.submit("twice", *SLOW, "--detach").returncode == 0
    stop_in_the_middle(cli, "twice")
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: cli("resume", "twice", "--detach"), range(2))
    assert sorted([one.returncode, other.returncode]) == [0, 2], one.stderr + other.stderr
    loser = one if one.returncode else other
    assert re.search("is running|is driven by process|was taken by another driver", loser.stderr), loser.stderr
    assert "its log" not in loser.stderr and loser.stderr.count("\n") == 1
    winner = max(record.number for record in driver_records(cli.run("twice")))
    assert wait_for_end(cli, "twice", after_driver=winner) == "FINISHED"
    assert [a.attempt for a in cli.run("twice").attempts()] == [1, 2]
    assert losses(cli.run("twice")) == slow_unbroken
    assert positions(cli.run("twice")) == list(range(60 * 32))


def test_a_stop_while_the_data_is_prepared_leaves_a_run_that_can_be_resumed(cli, tmp_path):
    """The default corpus and a cache of its own: preparing takes a minute, the stop comes in its first seconds."""
    fresh = {"ZEROFLEET_CACHE": str(tmp_path)}
    corpus = ["data.files=[python-stdlib]", "train.steps=1"]
    assert cli.submit("early", *corpus, "--detach", **fresh).returncode == 0
    stopped = cli("stop", "early", **fresh)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert "is STOPPED at step 0. There is no checkpoint" in stopped.stdout
    assert cli.run("early").attempts() == []
    assert cli("stop", "early").returncode == 0, "a second stop has nothing to do"
    resumed = cli("resume", "early", "--detach", **fresh)
    assert resumed.returncode == 0, resumed.stderr
    assert cli("stop", "early", **fresh).returncode == 0


def test_a_transient_nan_gives_back_the_unbroken_run_and_a_lasting_one_may_stop(cli, unbroken):
    fault = {"kind": "nan", "rank": 1, "step": 20}
    done = cli.submit("nan-once", *LONG, ZEROFLEET_FAULTS=json.dumps([fault]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 20 was not applied" in done.stdout
    assert losses(cli.run("nan-once")) == unbroken
    assert all(attempt.quarantine == [] for attempt in cli.run("nan-once").attempts())
    faults = json.dumps([{**fault, "attempt": None}])
    always = cli.submit("nan-always", *LONG, "cluster.max_quarantined_steps=0", ZEROFLEET_FAULTS=faults)
    assert always.returncode == 1
    assert "twice from the same state" in always.stdout + always.stderr
    assert len(cli.run("nan-always").attempts()) == 2


def test_an_export_gives_the_runs_held_out_loss(cli, unbroken, tiny_cache):
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    run = cli.run("unbroken")
    model = AutoModelForCausalLM.from_pretrained(run.storage.local_path("export")).eval()
    input_ids, labels = map(torch.from_numpy, tiny_cache.heldout.read(np.arange(8)))
    with torch.no_grad():
        logits = model(input_ids=input_ids).logits
    loss = torch.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1), ignore_index=-100)
    reported = [r["data"]["loss"] for r in run.read("metrics") if r["kind"] == "eval"]
    assert float(loss) == pytest.approx(reported[-1], abs=1e-3)
    assert reported[0] - reported[-1] > 1.0
