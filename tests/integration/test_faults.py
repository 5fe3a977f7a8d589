"""One cell of the fault matrix per fault, and every phase at least once; `make test-faults` runs the others too."""

from __future__ import annotations

import os

import pytest

from tests.support.accounts import account
from zerofleet.benchmarks.fault_matrix import CELL_TIMEOUT_S, Workplace, cells, read_matrix
from zerofleet.benchmarks.fault_places import node_of, why_not_over
from zerofleet.cluster.faults import MOUNTED, NODE, Fault
from zerofleet.launch.chaos.trial import run_trial
from zerofleet.launch.config import override_job

pytestmark = [pytest.mark.integration, pytest.mark.timeout(2 * CELL_TIMEOUT_S + 60)]

MATRIX = read_matrix()
CELLS = [cell for cell in cells(MATRIX, total_steps=40) if cell.in_tests]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    with Workplace(tmp_path_factory.mktemp("faults"), MATRIX) as made:
        yield made


def test_every_fault_and_every_phase_has_a_cell_here():
    passing = {"partition for 20 s", "slow node for 5 s"}
    assert {cell.fault for cell in CELLS} == set(MATRIX["faults"]) - passing
    assert {cell.phase for cell in CELLS} == set(MATRIX["phases"])
    assert len(CELLS) == len(MATRIX["test"])


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_nothing_is_lost(work, cell):
    if os.geteuid() != 0 and not cell.place and any(fault.kind in MOUNTED for fault in cell.plan):
        pytest.skip("mounting needs root")
    if reason := why_not_over(cell.place):
        pytest.skip(reason)
    if cell.place == "s3":
        pytest.importorskip("moto", reason="the S3 server of the tests is moto, of the dev extra")
    trial, problems = work.run(cell)
    assert problems == [], f"{problems}; {trial.run.storage.path()}"
    account(trial.run)
    strike, cost = trial.costs[-1]
    if cost.detected_s is None:  # a busy machine had nothing to write while it lasted
        assert strike.fault.kind == "storage_outage" and cost.restored_s > strike.fault.for_s
        return
    if trial.record.final_state == "FINISHED":
        assert cost.restored_s is not None and cost.detected_s <= cost.restored_s
    if strike.fault.kind in ("flip_byte", "truncate"):
        assert cost.repeated_steps > 0, "the memory was lost, and the checkpoint before the damaged one taken"
    if strike.fault.kind == "flip_snapshot":
        assert cost.repeated_steps == 1 and trial.record.attempts[-1].from_memory, "the snapshot before the damaged one"
        (skipped,) = [
            e.data["sentence"] for e in trial.run.events() if e.kind == "verdict" and "does not hold" in str(e.data)
        ]
        assert ".snapshot does not hold what rank 1 put there in step 32" in skipped
    if strike.fault.kind in ("kill", "kill_agent", "kill_head", "kill_driver", "freeze", "sigterm", "nan"):
        assert cost.repeated_steps == 0, "there is a snapshot of every step"
    if strike.fault.kind in NODE:
        struck, last = node_of(trial, 1, strike.arrival.attempt), trial.record.attempts[-1]
        assert node_of(trial, 1, last.attempt) != struck, "the spare"
        assert last.from_memory and cost.repeated_steps < 7, (
            "its buddy's memory, not the checkpoint of every seventh step"
        )


def test_a_wrong_sample_is_no_run_that_came_through(work, tmp_path):
    """Loss and counts look right; the proof is no formality."""
    job = override_job(work.job, ["run.name=wrong-sample"])
    trial = run_trial(job, tmp_path, (Fault("wrong_sample", 1, 20),), CELL_TIMEOUT_S)
    assert trial.record.final_state == "FINISHED"
    problems = trial.problems(work.unbroken.record)
    assert "the ledger is not exact: step 20 (attempt 1): wrong data: rank 1 was fed other" in "; ".join(problems)
    assert any("losses differ from the unbroken run's, first at step 20" in problem for problem in problems)
