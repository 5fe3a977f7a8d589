"""Events in, values out: every metric of the catalog, from a scripted run."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from tests.support.histories import BEGAN, Story
from zerofleet.cluster.goodput.history import end_of
from zerofleet.cluster.goodput.ledger import Ledger
from zerofleet.launch.metrics.catalog import METRICS
from zerofleet.launch.metrics.histogram import Distribution
from zerofleet.launch.metrics.reading import Facts, Reading
from zerofleet.trainer.events import DRIVER, Event
from zerofleet.trainer.run_folder import AttemptRecord, CheckpointId

FACTS = Facts("0.4.0", 1, "fp32", steps=100, nodes=2, ranks=2)


def claimed(record: AttemptRecord) -> Event:
    told = {name: getattr(record, name) for name in ("start_step", "world_size", "from_memory", "quarantine")}
    return Event("claimed", record.attempt, DRIVER, record.start_step, "load", record.claimed_at, data=told)


def heard(story: Story, facts: Facts = FACTS) -> Reading:
    """As the story's only driver hears it."""
    reading = Reading(facts, story.drivers[0], story.drivers[0].started_at)
    reading.begin()
    events = [*story.events, *story.results, *map(claimed, story.attempts)]
    for event in sorted(events, key=lambda event: (end_of(event), event.kind != "claimed")):
        reading.hear(event)
    return reading


def values(reading: Reading, now: float) -> dict:
    """By name, or by name and labels where there are labels."""
    samples = list(reading.samples(now))
    found = {(s.name, *s.labels) if s.labels else s.name: s.value for s in samples}
    assert len(found) == len(samples), "every series once"
    return found


def story() -> Story:
    made = Story(nodes=("n0", "n1")).driver().start().eval(2.0)
    return made.steps(10, 2.0, grad_norm=0.5, data_s=0.25, stall_s=0.0)


def test_a_run_that_trains():
    found = values(heard(story()), story().at + 1.0)
    assert found["run_info", "0.4.0", "1", "fp32"] == 1
    assert found["step"] == 10 and found["planned_steps"] == 100 and found["steps_total"] == 10
    assert found["tokens_total"] == 5120 and found["tokens_per_second"] == pytest.approx(256)
    assert found["loss"] == pytest.approx(8.9) and found["heldout_loss"] == 8.0
    assert found["grad_norm"] == 0.5 and found["learning_rate"] == 1e-3 and found["mfu_ratio"] == pytest.approx(0.4)
    assert found["step_age_seconds"] == pytest.approx(1.0)
    assert (found["nodes"], found["nodes_wanted"], found["ranks"], found["ranks_wanted"]) == (2, 2, 2, 2)
    assert found["attempts_total"] == 1 and found["verdicts_total", "node", "retry"] == 0
    steps = found["step_duration_seconds"]
    assert isinstance(steps, Distribution) and (steps.count, steps.total) == (10, 20.0)
    assert dict(zip(steps.bounds, steps.cumulative, strict=True))[1.0] == 0
    assert dict(zip(steps.bounds, steps.cumulative, strict=True))[2.0] == 10, "a bound is of the values up to it"


def test_the_time_by_label_is_the_ledgers_and_all_of_it():
    made = story().kill().start(3.0, from_step=8).steps(5)
    now = made.at + 0.5
    found, ledger = values(heard(made), now), Ledger.of(made.history(now))
    assert {label: found["time_seconds", label] for label in ledger.labels} == pytest.approx(ledger.labels)
    assert found["goodput_ratio"] == pytest.approx(ledger.goodput())
    assert sum(ledger.labels.values()) == pytest.approx(now - BEGAN)


def test_a_failure_counts_by_its_verdict_and_ranks_are_gone_until_they_start_again():
    made = story().kill(rank=1)
    found = values(heard(made), made.at)
    assert found["verdicts_total", "node", "retry"] == 1 and found["attempts_total"] == 1
    assert found["state", "RECOVERING"] == 1 and found["state", "RUNNING"] == 0
    assert found["ranks"] == 1 and found["nodes"] == 1, "the killed one"
    made.start(from_step=8).steps(4)
    found = values(heard(made), made.at)
    assert found["attempts_total"] == 2 and found["ranks"] == 2 and found["nodes"] == 2
    assert found["step"] == 12 and found["steps_total"] == 14, "two were done again"


def test_a_node_that_is_lost_takes_its_ranks_along():
    made = story()
    made.say("node_lost", node="n1")
    found = values(heard(made), made.at)
    assert (found["nodes"], found["ranks"]) == (1, 1)


def test_what_an_attempt_before_says_late_concerns_no_rank_of_now():
    made = story().kill().start(from_step=8)
    made.say("exit", 0, "end", attempt=1, killed=True, code=None, signal=9)
    made.say("phase", 7, "init", attempt=1, pid=7, node="n9")
    found = values(heard(made), made.at)
    assert (found["nodes"], found["ranks"]) == (2, 2)


def test_the_state_is_one_of_a_set_and_has_an_age():
    made = story().state("RUNNING", 30.0)
    found = values(heard(made), made.at)
    states = {name[1]: value for name, value in found.items() if name[0] == "state"}
    assert [name for name, value in states.items() if value] == ["RUNNING"] and len(states) == 11
    assert found["state_age_seconds"] == pytest.approx(30.0)


def snapshot(made: Story, rank: int, step: int, path: str | None = "/dev/shm/x") -> None:
    checkpoint = asdict(CheckpointId(step, made.attempt))
    data = {"path": path, "durable": True, "replicate": True, "checkpoint": checkpoint, "world_size": 2, "bytes": 1000}
    made.events.append(Event("snapshot", made.attempt, rank, step, "snapshot", made.at, 0.25 * (rank + 1), data))


def durable(made: Story, step: int, seconds: float) -> None:
    made.events.append(
        Event("checkpoint", made.attempt, DRIVER, step, "save", made.at, seconds, {"bytes": 2500, "path": "x"})
    )
    made.at += seconds


def replicated(made: Story, rank: int, step: int, message: str = "") -> None:
    checkpoint = asdict(CheckpointId(step, made.attempt))
    made.say("replicated", rank, checkpoint=checkpoint, world_size=2, message=message)


def test_a_tier_has_a_step_once_every_rank_has_it():
    made = story()
    snapshot(made, 0, 10)
    found = values(heard(made), made.at)
    assert ("newest_step", "memory") not in found and ("newest_step", "buddy") not in found
    snapshot(made, 1, 10)
    replicated(made, 0, 10)
    found = values(heard(made), made.at + 1)
    assert found["newest_step", "memory"] == 10 and ("newest_step", "buddy") not in found
    assert found["snapshot_bytes"] == 2000
    assert (found["snapshot_duration_seconds"].count, found["snapshot_duration_seconds"].total) == (1, 0.5)
    replicated(made, 1, 10)
    found = values(heard(made), made.at)
    assert found["newest_step", "buddy"] == 10 and ("newest_step", "storage") not in found


def test_a_snapshot_without_a_buffer_and_a_replica_with_a_problem_are_none():
    made = story()
    snapshot(made, 0, 10)
    snapshot(made, 1, 10, path=None)
    replicated(made, 0, 10, "the buddy is full")
    replicated(made, 1, 10)
    found = values(heard(made), made.at)
    assert not {("newest_step", tier) for tier in ("memory", "buddy")} & found.keys()


def test_the_age_of_what_is_durable_counts_from_the_first_step_then_from_the_newest_commit():
    made = story()
    assert values(heard(made), made.at + 7)["durable_age_seconds"] == pytest.approx(9 * 2.0 + 7)
    durable(made, 10, 3.0)
    found = values(heard(made), made.at + 7)
    assert found["durable_age_seconds"] == pytest.approx(7.0) and found["newest_step", "storage"] == 10
    assert found["checkpoint_bytes"] == 2500 and found["checkpoint_duration_seconds"].total == 3.0
    made.finish()
    assert values(heard(made), made.at + 1000)["durable_age_seconds"] == 0, "nothing is left to be lost"


def test_an_attempt_that_walks_back_over_a_damaged_checkpoint_makes_the_older_one_the_newest():
    made = story()
    durable(made, 4, 1.0)
    durable(made, 8, 1.0)
    made.kill().start(from_step=4)
    assert values(heard(made), made.at)["newest_step", "storage"] == 4


def storage(made: Story, **data: object) -> None:
    made.say("incident", message="no room", **{"class": "storage", **data})


def test_storage_is_down_from_its_first_refusal_until_it_takes_something():
    made = story()
    storage(made)
    made.at += 20.0
    storage(made)
    made.at += 10.0
    found = values(heard(made), made.at)
    assert found["storage_down_seconds"] == pytest.approx(30.0) and found["incidents_total", "storage"] == 2
    durable(made, 10, 1.0)
    assert values(heard(made), made.at)["storage_down_seconds"] == 0


def test_a_save_that_was_given_up_is_no_outage():
    made = story()
    storage(made, given_up=True)
    made.at += 20.0
    assert values(heard(made), made.at)["storage_down_seconds"] == 0


def test_stragglers_are_those_that_are_slow_now():
    made = story()
    for rank, is_over in ((0, False), (1, False), (1, True)):
        told = {"class": "straggler", "message": "slow", "rank": rank, "node": "n0", "own_s": 2.0, "is_over": is_over}
        made.events.append(Event("incident", 1, DRIVER, 10, "running", made.at, data=told))
    found = values(heard(made), made.at)
    assert found["stragglers"] == 1 and found["incidents_total", "straggler"] == 3


def test_what_is_left_out_is_what_the_newest_attempt_leaves_out():
    made = story().kill().start(from_step=8)
    record = made.attempts[-1]
    made.attempts[-1] = AttemptRecord(**{**vars(record), "quarantine": [[16, 24], [40, 44]]})
    assert values(heard(made), made.at)["quarantined_positions"] == 12


def test_a_driver_that_takes_a_run_over_goes_on_with_its_counts():
    made = story().kill().start(from_step=8).steps(3)
    durable(made, 13, 1.0)
    made.finish().at += 50.0
    before = made.history()
    made.driver()
    began = made.drivers[1].started_at
    reading = Reading(FACTS, made.drivers[1], began)
    past = sorted([*before.events, *before.results], key=end_of)
    reading.recall(made.drivers, before.attempts, past)
    reading.begin()
    found = values(reading, began + 2.0)
    assert found["attempts_total"] == 2 and found["steps_total"] == 13 and found["verdicts_total", "node", "retry"] == 1
    assert found["state", "PENDING"] == 1 and found["ranks"] == 0
    assert found["state_age_seconds"] == pytest.approx(2.0) == found["step_age_seconds"]
    assert found["durable_age_seconds"] == 0, "nothing was done since"
    wall_s = sum(value for name, value in found.items() if name[0] == "time_seconds")
    assert wall_s == pytest.approx(before.ended_at - BEGAN + 2.0), "nobody had the run in between"


def test_a_driver_that_begins_anew_is_the_same_driver():
    made = story().kill()
    before = made.history()
    reading = Reading(FACTS, made.drivers[0], made.at + 5.0)
    reading.recall(made.drivers, before.attempts, sorted([*before.events, *before.results], key=end_of))
    reading.begin()
    found = values(reading, made.at + 7.0)
    assert found["steps_total"] == 10 and found["attempts_total"] == 1 and found["state", "PENDING"] == 1
    assert found["state_age_seconds"] == pytest.approx(2.0) and found["ranks"] == 0
    wall_s = sum(value for name, value in found.items() if name[0] == "time_seconds")
    assert wall_s == pytest.approx(made.at + 7.0 - BEGAN) and found["time_seconds", "step"] == pytest.approx(17.5)


def test_a_run_of_silos_has_no_accounts_of_its_own():
    silos = Facts("0.4.0", 1, "fp32", steps=100, nodes=2, ranks=2, has_attempts=False)
    found = values(heard(story(), silos), story().at)
    assert "goodput_ratio" not in found and found["loss"] == pytest.approx(8.9)


def test_every_metric_of_the_catalog_has_a_value_in_some_run():
    made = story()
    for rank in range(2):
        snapshot(made, rank, 10)
    durable(made, 10, 1.0)
    shown = {sample.name for sample in heard(made).samples(made.at)}
    assert shown == {metric.name for metric in METRICS}
