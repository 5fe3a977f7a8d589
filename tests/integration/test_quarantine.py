"""NaN and loss spikes that lie in the data: replayed first, then left out, and nothing else is."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.cli import Cli, assert_audited, losses, positions
from tests.support.ranks import Plan, job, run_attempt, run_ranks
from zerofleet.trainer.checkpoint.reader import CheckpointReader
from zerofleet.trainer.run_folder import CheckpointId, RunFolder

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


# -- ranks alone ---------------------------------------------------------------------------------------------------
def claimed(config, quarantine=()) -> RunFolder:
    """A new run whose first attempt leaves something out."""
    run = RunFolder(config.run.storage, config.run.name)
    run.create(json.dumps(config.model_dump(mode="json")))
    run.claim_attempt(1, None, 2, config.train.zero_stage, quarantine=quarantine)
    return run


def test_what_is_left_out_is_skipped_written_into_checkpoints_and_kept_on_other_ranks(
    tmp_path, tiny_corpus, tiny_cache
):
    config = job(tmp_path, tiny_corpus)
    run = claimed(config, quarantine=[[10, 11], [24, 32]])
    outcome = run_ranks(config, tiny_cache, 2, 1, Plan(stop_after=4))
    assert not outcome.errors, outcome.errors
    ranges = [event.data["ledger"]["ranges"] for event in outcome.of("step")]
    assert ranges == [[[0, 8]], [[8, 10], [11, 17]], [[17, 24], [32, 33]], [[33, 41]]]
    manifest = CheckpointReader(run.storage, run.checkpoints()[-1]).manifest
    assert (manifest.step, manifest.position, manifest.quarantine) == (4, 41, [[10, 11], [24, 32]])
    resumed = run_attempt(config, tiny_cache, 1)
    assert not resumed.errors, resumed.errors
    assert resumed.of("step")[0].data["ledger"]["ranges"] == [[41, 49]]
    assert run.attempts()[1].quarantine == [[10, 11], [24, 32]]
    assert positions(run) == [p for p in range(57) if p != 10 and not 24 <= p < 32]
    assert_audited(run, 6)


def test_a_state_whose_steps_left_out_something_else_is_refused(tmp_path, tiny_corpus, tiny_cache):
    config = job(tmp_path, tiny_corpus)
    run = claimed(config)
    assert not run_ranks(config, tiny_cache, 2, 1, Plan(stop_after=4)).errors
    run.claim_attempt(2, CheckpointId(4, 1), 2, 1, quarantine=[[8, 16]])
    outcome = run_ranks(config, tiny_cache, 2, 2)
    assert {name for _, name, _ in outcome.errors} == {"CheckpointUnusable"}
    assert "left out no positions, those of attempt 2 leave out positions 8 to 15" in outcome.errors[0][2]


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_spike_ends_the_attempt_on_all_ranks_and_its_replay_is_judged_the_same(
    tmp_path, tiny_corpus, tiny_cache, stage
):
    config = job(tmp_path, tiny_corpus, train__steps=22, train__zero_stage=stage, train__loss_spike_threshold=10)
    outcomes = [run_attempt(config, tiny_cache, 2, Plan(spike_at=(1, 20))) for _ in range(2)]
    first, second = ({(name, message) for _, name, message in outcome.errors} for outcome in outcomes)
    assert first == second and len(first) == 1
    ((name, message),) = first
    assert name == "LossSpike" and message.startswith("step 20 is a loss spike") and "positions 152 to 159" in message
    assert [max(outcome.losses()) for outcome in outcomes] == [19, 19]
    assert not run_attempt(config, tiny_cache, 2).errors, "without the fault there is no spike"


# -- whole runs ----------------------------------------------------------------------------------------------------
STEPS = 30
JOB = [
    f"train.steps={STEPS}",
    "checkpoint.interval_steps=7",
    "checkpoint.export=false",
    "train.loss_spike_threshold=10",
]
LEFT_OUT = range(152, 160)
"""Step 20 is fed these first."""


@pytest.fixture(scope="module")
def cli(tmp_path_factory, tiny_corpus, tiny_cache):
    return Cli(tmp_path_factory.mktemp("cli"), tiny_corpus)


@pytest.fixture(scope="module")
def unbroken(cli):
    done = cli.submit("unbroken", *JOB)
    assert done.returncode == 0, done.stdout + done.stderr
    return losses(cli.run("unbroken"))


@pytest.fixture(scope="module")
def reference(cli, unbroken):
    """The unbroken run with the same quarantine from the beginning: a process that is gone has claimed its first attempt."""
    run, text = cli.run("reference"), cli.run("unbroken").job_yaml()
    run.create(text)
    claim = f"RunFolder({str(cli.storage)!r}, 'reference').claim_attempt(1, None, 2, 1, quarantine=[[152, 160]])"
    code = f"from zerofleet.trainer.run_folder import RunFolder; {claim}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    done = cli("resume", "reference")
    assert done.returncode == 0, done.stdout + done.stderr
    found = losses(run)
    same = [step for step in found if found[step] == unbroken[step]]
    assert same == list(range(1, 20)), "the quarantine changes step 20 and what follows"
    return found


@pytest.mark.parametrize("kind", ["nan", "spike"])
def test_what_recurs_is_left_out_and_the_rest_is_that_of_a_run_which_never_had_it(cli, reference, kind):
    """A rank is killed later on: the attempt after that leaves the same out."""
    bad = {"kind": kind, "rank": 1, "step": 20, "attempt": None, "position": 155}
    kill = {"kind": "kill", "rank": 0, "step": 26, "attempt": 3}
    done = cli.submit(f"{kind}-in-data", *JOB, ZEROFLEET_FAULTS=json.dumps([bad, kill]))
    assert done.returncode == 0, done.stdout + done.stderr
    run = cli.run(f"{kind}-in-data")
    assert [attempt.quarantine for attempt in run.attempts()] == [[], [], [[152, 160]], [[152, 160]]]
    assert losses(run) == reference, "bitwise"
    assert positions(run) == [p for p in range(8 * (STEPS + 1)) if p not in LEFT_OUT]
    assert_audited(run, STEPS)
    verdicts = [event.data for event in run.events() if event.kind == "verdict"]
    assert [verdict["action"] for verdict in verdicts] == ["retry", "quarantine", "retry"]
    assert [verdict["class"] for verdict in verdicts] == ["data", "data", "node"]
    assert "positions 152 to 159" in verdicts[1]["sentence"] and "1 of at most" in verdicts[1]["sentence"]
    (incident,) = [event for event in run.events() if event.kind == "incident" and event.data["class"] == "data"]
    assert incident.data["quarantine"] == [[152, 160]]
    manifest = CheckpointReader(run.storage, run.checkpoints()[-1]).manifest
    assert (manifest.step, manifest.position, manifest.quarantine) == (STEPS, 8 * (STEPS + 1), [[152, 160]])


def test_a_spike_that_passes_gives_back_the_unbroken_run(cli, unbroken):
    done = cli.submit("spike-once", *JOB, ZEROFLEET_FAULTS=json.dumps([{"kind": "spike", "rank": 0, "step": 25}]))
    assert done.returncode == 0, done.stdout + done.stderr
    run = cli.run("spike-once")
    assert [attempt.quarantine for attempt in run.attempts()] == [[], []]
    assert losses(run) == unbroken, "bitwise"
    assert positions(run) == list(range(8 * STEPS))
