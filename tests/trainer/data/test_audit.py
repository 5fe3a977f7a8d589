"""The audit on simulated runs: it proves what is right, and names what is not with step, attempt and rank."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import numpy as np
import pytest

from tests.support.costs import costs_at_most, processor_time
from tests.support.simulated_run import WORLD_SIZES, SimulatedRun, feed_of, killed_and_resized, ledger_line, small_store
from zerofleet.trainer.batch import BatchPlan
from zerofleet.trainer.data.audit import Audit, audit, spans
from zerofleet.trainer.data.ledger import combine, sample_digests
from zerofleet.trainer.data.ledger_table import LedgerTable

STORE = small_store()
FEED = feed_of(STORE)
STEPS = 40


def audited(run: SimulatedRun, known_step: int = 0, silo: str = "main") -> Audit:
    return audit(LedgerTable.of(run.lines, silo), run.attempts, run.feed, STEPS, known_step)


def recovered() -> SimulatedRun:
    """Killed after step 12, and again after 20; begun again from 10 on three ranks and from 20 on one; over two epochs."""
    return SimulatedRun(FEED).attempt(0, 12).attempt(10, 20, 3, 2).attempt(20, 24, 1, 4)


def kinds(result: Audit) -> list[str]:
    return [finding.kind for finding in result.findings]


def test_a_run_that_was_killed_twice_is_exact():
    result = audited(recovered())
    assert result.is_exact and (result.proven_step, result.last_step) == (24, 24)
    assert (result.num_positions, result.num_repeated) == (240, 2)
    assert result.num_tokens == sum(FEED.step_plan(step).num_tokens for step in range(24))


def test_each_step_counts_for_the_last_attempt_that_began_before_it():
    found = spans(recovered().attempts, 24)
    assert [(span.attempt, span.first, span.last) for span in found] == [(1, 1, 10), (2, 11, 20), (3, 21, 24)]
    walked_back = recovered().attempt(4, 6).attempts
    assert [(span.attempt, span.first, span.last) for span in spans(walked_back, 6)] == [(1, 1, 4), (4, 5, 6)]


# -- what is not right ---------------------------------------------------------------------------------------------
def test_a_step_that_is_in_no_ledger():
    run = recovered()
    run.lines.remove(run.line(15))
    (gap,) = audited(run).findings
    assert (gap.kind, gap.first_step, gap.last_step, gap.attempt) == ("gap", 15, 15, 2)
    assert gap.ranges == [[140, 150]]
    assert str(gap) == "positions 140 to 149 were fed to nobody: the ledger has no line of attempt 2 for step 15"
    assert audited(run).proven_step == 14


def test_a_step_that_only_an_attempt_has_for_which_it_does_not_count():
    run = recovered()
    run.lines.remove(run.line(11))
    (gap,) = audited(run).findings
    assert (gap.kind, gap.first_step, gap.attempt) == ("gap", 11, 2)
    assert "that of attempt 1 does not count, since a later attempt began before it" in str(gap)


def test_steps_of_two_attempts_that_are_missing():
    run = recovered()
    run.lines = [line for line in run.lines if not 9 <= line["step"] <= 13]
    first, second = audited(run).findings
    assert (first.attempt, first.first_step, first.last_step, first.ranges) == (1, 9, 10, [[80, 100]])
    assert (second.attempt, second.first_step, second.last_step, second.ranges) == (2, 11, 13, [[100, 130]])


def test_the_last_step_is_missed_where_a_checkpoint_has_it():
    run = recovered()
    run.lines.remove(run.line(24))
    assert audited(run).is_exact and audited(run).last_step == 23
    (gap,) = audited(run, known_step=24).findings
    assert (gap.kind, gap.first_step, gap.attempt) == ("gap", 24, 3)


def test_steps_of_which_no_attempt_is_left():
    """Without a record of the attempts nothing can be proved."""
    for attempts, last in (([], 24), (recovered().attempts[1:], 10)):
        run = recovered()
        run.attempts = attempts
        found = audited(run, known_step=24)
        gap = next(finding for finding in found.findings if finding.kind == "gap")
        assert (gap.first_step, gap.last_step, gap.attempt, found.proven_step) == (1, last, None, 0)
        assert "no attempt that they count for" in str(gap)


def test_a_range_that_is_taken_out_of_a_line():
    run = recovered()
    run.line(15)["ranges"] = [[140, 143], [145, 150]]
    gap, positions = sorted(audited(run).findings, key=lambda finding: finding.kind)
    assert (gap.kind, gap.first_step, gap.attempt, gap.ranges) == ("gap", 15, 2, [[143, 145]])
    assert str(gap).endswith("step 15 of attempt 2 was fed others")
    assert "the ledger says positions 140 to 142, 145 to 149, the order positions 140 to 149" in str(positions)


def test_a_line_that_is_there_twice():
    run = recovered()
    run.lines.append(run.line(15))
    (repeat,) = audited(run).findings
    assert (repeat.kind, repeat.first_step, repeat.last_step, repeat.attempt) == ("repeat", 15, 15, 2)
    assert repeat.ranges == [[140, 150]] and "step 15 of attempt 2, which the ledger has more than once" in str(repeat)


def test_a_line_that_is_shifted_by_one():
    run = recovered()
    run.line(15)["ranges"] = [[141, 151]]
    found = {finding.kind: finding for finding in audited(run).findings}
    assert set(found) == {"gap", "repeat", "positions"}
    assert found["gap"].ranges == [[140, 141]] and found["repeat"].ranges == [[150, 151]]
    assert "by steps 15 to 16 of attempt 2" in str(found["repeat"])
    assert {finding.first_step for finding in found.values()} == {15}, "the repeat too is the shifted line's"


def test_two_steps_that_were_exchanged_are_each_fed_once_and_yet_not_in_the_order():
    run = recovered()
    one, other = run.line(15), run.line(17)
    one["step"], other["step"] = 17, 15
    found = audited(run).findings
    assert sorted(set(kinds(audited(run)))) == ["data", "positions"]
    assert {finding.first_step for finding in found} == {15, 17}


@pytest.mark.parametrize(("step", "rank", "attempt"), [(5, 1, 1), (15, 2, 2), (22, 0, 3)])
def test_a_rank_that_was_fed_one_wrong_sample_is_named(step, rank, attempt):
    run = SimulatedRun(FEED).attempt(0, 12, wrong={step: rank}).attempt(10, 20, 3, 2, wrong={step: rank})
    run.attempt(20, 24, 1, 4, wrong={step: rank})
    (finding,) = audited(run).findings
    assert (finding.kind, finding.first_step, finding.attempt, finding.ranks) == ("data", step, attempt, (rank,))
    assert f"step {step} (attempt {attempt}): wrong data: rank {rank} was fed other" in str(finding)


def test_a_wrong_sample_in_a_step_that_was_done_again_does_no_harm():
    run = SimulatedRun(FEED).attempt(0, 12, wrong={12: 1}).attempt(10, 24)
    assert audited(run).is_exact


def test_a_rank_that_is_fed_wrong_samples_for_many_steps_is_said_once():
    run = SimulatedRun(FEED).attempt(0, 20, wrong=dict.fromkeys(range(4, 9), 1) | {12: 1, 13: 0})
    found = [(finding.first_step, finding.last_step, finding.ranks) for finding in audited(run).findings]
    assert found == [(4, 8, (1,)), (12, 12, (1,)), (13, 13, (0,))]


def test_a_line_whose_digest_was_altered_accuses_no_rank():
    run = recovered()
    run.line(15)["digest"] = "0" * 16
    (finding,) = audited(run).findings
    assert (finding.kind, finding.ranks) == ("data", ()) and "the line was altered" in str(finding)


def test_a_ledger_of_before_ranks_were_recorded_shows_wrong_data_but_not_whose():
    run = recovered()
    for line in run.lines:
        for name in ("data", "micro_batch_size", "rank_digests"):
            del line[name]
    assert audited(run).is_exact
    run.line(15)["digest"] = "0" * 16
    (finding,) = audited(run).findings
    assert finding.ranks == () and "the ledger does not say" in str(finding)


@pytest.mark.parametrize("name", ["num_sequences", "num_tokens"])
def test_counts_that_the_index_does_not_give(name):
    run = recovered()
    run.line(15)[name] += 1
    (finding,) = audited(run).findings
    assert (finding.kind, finding.first_step, finding.attempt) == ("counts", 15, 2)


@pytest.mark.parametrize(
    ("attempt", "why"), [(3, "the attempt began after step 20"), (9, "there is no such attempt"), (1, "does not count")]
)
def test_a_line_of_another_attempt(attempt, why):
    run = recovered()
    run.line(15)["attempt"] = attempt
    found = audited(run).findings
    assert "gap" in kinds(audited(run)) and why in "; ".join(map(str, found))
    if attempt != 1:
        assert [(f.first_step, f.attempt) for f in found if f.kind == "attempt"] == [(15, attempt)]


@pytest.mark.parametrize("step", [0, -3, STEPS + 1, 10**15])
def test_a_step_that_the_run_does_not_have(step):
    run = recovered()
    run.lines.append({**run.line(15), "step": step, "attempt": 3})
    (finding,) = audited(run).findings
    assert (finding.kind, finding.first_step, finding.attempt) == ("attempt", step, 3)


@pytest.mark.parametrize("bounds", [[[140, 10**15]], [[150, 140]], [[-10, 0]], []])
def test_ranges_that_are_none_are_found_and_cost_nothing(bounds):
    run = recovered()
    run.line(15)["ranges"] = bounds
    assert {"repeat" if bounds == [[140, 10**15]] else "gap", "positions"} <= set(kinds(audited(run)))


# -- quarantine ----------------------------------------------------------------------------------------------------
def quarantined() -> SimulatedRun:
    """Step 16 failed twice: attempt 3 leaves out what it was fed."""
    return SimulatedRun(FEED).attempt(0, 15).attempt(14, 15).attempt(14, 24, quarantine=[[150, 160]])


def test_what_is_left_out_is_fed_to_nobody():
    result = audited(quarantined())
    assert result.is_exact and result.num_positions == 240
    assert [(record.attempt, ranges) for record, ranges in result.left_out] == [(3, [[150, 160]])]


def test_a_quarantined_range_that_was_fed_all_the_same():
    run = quarantined()
    run.lines[-9] = ledger_line(FEED, 16, 3)
    found = {finding.kind: finding for finding in audited(run).findings}
    assert set(found) >= {"quarantined", "gap", "positions", "data"}
    assert (found["quarantined"].first_step, found["quarantined"].attempt) == (16, 3)
    assert str(found["quarantined"]).startswith(
        "positions 150 to 159 are quarantined and were fed all the same: by step 16 of"
    )


def test_an_attempt_that_forgot_the_quarantine_of_the_one_before_is_not_exact():
    """Each step is what its own attempt's plan says, and yet positions are fed twice."""
    run = quarantined()
    run.attempts.append(replace(run.attempts[2], attempt=4, start_step=20, quarantine=[]))
    run.lines = [line for line in run.lines if line["step"] <= 20]
    run.lines += [ledger_line(FEED, step, 4) for step in range(21, 25)]
    (repeat,) = audited(run).findings
    assert (repeat.kind, repeat.first_step, repeat.attempt, repeat.ranges) == ("repeat", 21, 4, [[200, 210]])


# -- any run -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(6))
def test_a_run_that_is_killed_and_resized_20_times_passes_and_its_sabotage_does_not(seed):
    draw = random.Random(seed)
    run = killed_and_resized(FEED, STEPS, 20, draw)
    result = audited(run)
    assert result.is_exact and result.last_step == STEPS, list(map(str, result.findings))
    counted = {step: span.attempt for span in spans(run.attempts, STEPS) for step in range(span.first, span.last + 1)}
    for sabotage in (_removed, _doubled, _shifted, _misfed):
        broken, step = copy.deepcopy(run), draw.randrange(1, STEPS + 1)
        (line,) = [entry for entry in broken.lines if (entry["step"], entry["attempt"]) == (step, counted[step])]
        sabotage(broken, line)
        found = audited(broken, known_step=STEPS)
        assert (found.findings[0].first_step, found.findings[0].attempt) == (step, counted[step]), sabotage
        assert found.proven_step == step - 1


def _removed(run: SimulatedRun, line: dict) -> None:
    run.lines.remove(line)


def _doubled(run: SimulatedRun, line: dict) -> None:
    run.lines.append(dict(line))


def _shifted(run: SimulatedRun, line: dict) -> None:
    line["ranges"] = [[start + 1, end + 1] for start, end in line["ranges"]]


def _misfed(run: SimulatedRun, line: dict) -> None:
    """Rank 0 was fed a sample that is not its own."""
    attempt = run.attempts[line["attempt"] - 1]
    plan = BatchPlan.of(run.feed.plan.global_batch_size, line["micro_batch_size"], attempt.world_size)
    feed = replace(run.feed, plan=plan, quarantine=attempt.quarantine)
    line.update(ledger_line(feed, line["step"], line["attempt"], wrong_rank=0))


@pytest.mark.parametrize(("batch", "micro"), [(10, 3), (7, 2), (24, 4), (1, 1)])
def test_the_ledger_is_the_same_at_every_world_size(batch, micro):
    """What a step is fed, its counts and its digest; only who was fed what is another."""
    of_size = {
        size: [ledger_line(feed_of(STORE, batch, micro, size), step, 1) for step in (1, 2, 50)] for size in WORLD_SIZES
    }
    common = [{**line, "rank_digests": ""} for line in of_size[1]]
    for size, lines in of_size.items():
        assert [{**line, "rank_digests": ""} for line in lines] == common
        assert all(len(line["rank_digests"]) == 4 * size for line in lines)
        run = SimulatedRun(feed_of(STORE, batch, micro, size)).attempt(0, 9, size, micro)
        assert audited(run).is_exact


def test_progress_is_told_up_to_the_last_step(monkeypatch):
    monkeypatch.setattr("zerofleet.trainer.data.audit._CHUNK_POSITIONS", 40)
    run, said = recovered(), []
    result = audit(LedgerTable.of(run.lines, "main"), run.attempts, FEED, STEPS, 0, lambda *done: said.append(done))
    assert result == audited(run) and result.is_exact
    assert said == [(4, 24), (8, 24), (10, 24), (14, 24), (18, 24), (20, 24), (24, 24)]


def test_nothing_to_prove():
    assert audited(SimulatedRun(FEED)) == Audit((), 0, 0, 0, 0, ())
    assert audited(recovered(), silo="another").findings == ()


def test_a_hundred_thousand_positions_cost_little_more_than_their_digests():
    """Tokens are read and hashed, of a corpus whose size is no power of two. Position by position would be a hundred times as much."""
    feed = feed_of(small_store(num_tokens=16 * 9973 + 5, sequence_length=16), batch=4096, micro=4096, world_size=1)
    run = SimulatedRun(feed).attempt(0, 25, 1, 4096)
    result = audited(run)
    assert result.is_exact and result.num_positions == 102_400
    ids, tokens = np.arange(102_400), np.ones((102_400, 16), np.int64)
    digests = processor_time(lambda: combine(sample_digests(ids, tokens, tokens)))
    assert costs_at_most(10, processor_time(lambda: audited(run)), digests)
