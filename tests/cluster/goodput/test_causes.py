"""Planted causes, each named first with its cost; and a run in which nothing stands out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.support.histories import Story
from zerofleet.cluster.config import ClusterConfig
from zerofleet.cluster.goodput.account import Account, Cause
from zerofleet.cluster.goodput.causes import best_setting, explain
from zerofleet.cluster.goodput.failure_costs import COSTS
from zerofleet.cluster.goodput.ledger import Ledger
from zerofleet.cluster.verdict import TIME_LIMIT
from zerofleet.trainer.config import TrainConfig

IN_MEMORY = "snapshots in memory: 3 buffers, 75 MiB per node each"


def config(**checkpoint: Any) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "model": {"config": {"model_type": "llama"}},
            "data": {"files": ["python-stdlib"], "sequence_length": 1024},
            "train": {"steps": 100, "global_batch_size": 8, "micro_batch_size": 4},
            "checkpoint": checkpoint,
        }
    )


def account(story: Story, config: TrainConfig | None = None, **cluster: Any) -> Account:
    return Account(Ledger.of(story.history()), config or globals()["config"](), ClusterConfig(**cluster))


def causes(story: Story, config: TrainConfig | None = None, **cluster: Any) -> list[Cause]:
    found = explain(account(story, config, **cluster))
    assert all(cause.saving_s <= cause.cost_s for cause in found), "a setting cannot save more than the cause has cost"
    return found


def begun(**arguments: Any) -> Story:
    story = Story(**arguments).driver().start()
    story.say("info", 0, message=IN_MEMORY)
    return story


def ranked(story: Story, own_s: list[float], data_s: list[float] | None = None) -> Story:
    return story.ranks(own_s, data_s or [0.01] * len(own_s), [0.0] * len(own_s), steps=100)


# -- the planted -----------------------------------------------------------------------------------------------------
def slow_rank() -> list[Cause]:
    story = ranked(begun(world_size=4, nodes=("n0", "n1")).steps(100, 1.0), [0.3, 0.3, 0.3, 0.8])
    (first, *_) = found = causes(story.finish(), ranks_per_node=4)
    assert first.cost_s == pytest.approx(50.0) and "rank 3 on node n1" in first.evidence and "2.67 x" in first.evidence
    return found


def data_wait() -> list[Cause]:
    story = ranked(begun().steps(100, 1.0, data_s=0.2), [0.5, 0.6], [0.2, 0.3])
    (first, *_) = found = causes(story.finish())
    assert first.cost_s == pytest.approx(30.0), "that of the rank that waits longest"
    return found


def too_frequent_saves() -> list[Cause]:
    story = begun().steps(100, 1.0, gap_s=0.5, stall_s=0.4)
    (first, *_) = found = causes(story.finish(), config(snapshot_interval_steps=1))
    assert first.setting.startswith("checkpoint.snapshot_interval_steps=") and first.cost_s == pytest.approx(40.0)
    assert 35.0 < first.saving_s < 40.0 and best_setting(found) is first
    return found


def slow_storage() -> list[Cause]:
    story = begun()
    for _ in range(5):
        story.steps(9, 1.0).steps(1, 1.0, gap_s=4.0, stall_s=4.0)
        story.say("checkpoint", phase="save", bytes=40e6)
        event = story.events.pop()
        story.events.append(type(event)(**{**vars(event), "start": event.start - 8.0, "duration_s": 8.0}))
    (first, *_) = found = causes(story.finish(end_s=8.0))
    assert "8.0 s to become durable, 5.3 MB/s" in first.evidence and first.cost_s == pytest.approx(20.0 + 1.0 + 8.0)
    return found


def one_bad_node() -> list[Cause]:
    story = begun(world_size=4, nodes=("n0", "n1"))
    for _ in range(3):
        story.steps(10).kill(rank=3).start(6.0)
    story.steps(10).kill(rank=0).start(6.0)
    (first, *_) = found = causes(story.steps(10).finish(), nodes=2)
    assert "n1 was at fault in 3 of 4 failures" in first.evidence and first.setting == "cluster.min_nodes=1"
    return found


def compile_every_step() -> list[Cause]:
    (first, *_) = found = causes(begun().steps(100, 1.0, compile_s=0.5).finish())
    assert first.cost_s == pytest.approx(97 * 0.5) and "97 of 97 steps" in first.evidence
    return found


def tiny_micro_batch() -> list[Cause]:
    tiny = config()
    train = tiny.train.model_copy(update={"micro_batch_size": 1, "global_batch_size": 64})
    tiny = tiny.model_copy(update={"train": train, "data": tiny.data.model_copy(update={"sequence_length": 128})})
    (first, *_) = found = causes(begun().steps(100, 1.0, mfu=0.1).finish(), tiny)
    assert first.setting == "train.micro_batch_size=8" and "32 micro-steps of 128 tokens" in first.evidence
    assert first.cost_s == pytest.approx(90.0 * (1 - 1 / 8) / 2)
    return found


def swap() -> list[Cause]:
    (first, *_) = found = causes(begun().steps(100, 1.0, paging_s=0.6).finish())
    assert first.cost_s == pytest.approx(60.0) and first.setting == "train.micro_batch_size=2"
    return found


def hang() -> list[Cause]:
    story = begun().steps(50, 1.0)
    story.at += 120.0
    story.fail("hang", "rank 1 gave no sign of life for 119.0 s").start(3.0).steps(50).finish()
    (first, *_) = found = causes(story)
    assert first.setting == "cluster.stall_timeout_s=10" and first.saving_s == pytest.approx(109.0)
    return found


def user_bug() -> list[Cause]:
    story = begun().steps(5, 1.0, stall_s=0.5)
    story.say("error", 1, "step", type="ZeroDivisionError", message="division by zero", traceback="", user=False)
    story.fail("user bug", "rank 1 ended with ZeroDivisionError: division by zero", action="stop").state("FAILED")
    (first, *_) = found = causes(story)
    assert first.is_end and "ZeroDivisionError" in first.evidence and "traceback" in first.remedy
    return found


PLANTED = (slow_rank, data_wait, too_frequent_saves, slow_storage, one_bad_node, compile_every_step, tiny_micro_batch, swap, hang, user_bug)  # fmt: skip


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_cause_is_named_first(plant: Callable[[], list[Cause]]):
    assert plant()[0].name.replace("-", " ") == plant.__name__.replace("_", " ")


def test_what_another_cause_costs_is_not_laid_to_the_micro_batch():
    small = config()
    small = small.model_copy(
        update={"train": small.train.model_copy(update={"micro_batch_size": 1, "global_batch_size": 64})}
    )
    small = small.model_copy(update={"data": small.data.model_copy(update={"sequence_length": 128})})
    story = ranked(begun().steps(100, 1.0, mfu=0.1), [0.1, 0.7]).finish()
    slow, tiny = causes(story, small)
    assert (slow.name, slow.cost_s) == ("slow rank", pytest.approx(60.0))
    assert (tiny.name, tiny.cost_s) == ("tiny micro-batch", pytest.approx((90.0 - 60.0) * (1 - 1 / 8) / 2))


def test_what_has_run_out_of_memory_is_not_recommended_again():
    """Half of a halved micro-batch is a quarter of what the recipe asks for; a larger one does not fit."""

    def halved(story: Story) -> Story:
        story.attempts[-1] = replace(story.attempts[-1], halved=[4, 2])
        return story

    (first, *_) = causes(halved(begun().steps(100, 1.0, paging_s=0.6)).finish())
    assert first.name == "swap" and first.setting == "train.micro_batch_size=1"
    short = config().model_copy(update={"data": config().data.model_copy(update={"sequence_length": 64})})
    plain = [cause.name for cause in causes(begun().steps(100, 1.0, mfu=0.1).finish(), short.with_micro_batch(1))]
    story = begun().steps(100, 1.0, mfu=0.1)
    story.attempts[-1] = replace(story.attempts[-1], halved=[2, 1])
    found = [cause.name for cause in causes(story.finish(), short.with_micro_batch(2))]
    assert "tiny micro-batch" in plain and "tiny micro-batch" not in found


def test_ranks_that_write_themselves_show_slow_storage_by_their_stall():
    story = Story().driver().start()
    for _ in range(5):
        story.steps(9, 1.0).steps(1, 1.0, gap_s=4.0, stall_s=4.0)
        story.say("checkpoint", phase="save", bytes=40e6)
    (first, *_) = found = causes(story.finish(), config(snapshot_interval_steps=0))
    assert first.name == "slow storage" and "4.0 s to become durable, 11.4 MB/s" in first.evidence
    assert first.setting == "checkpoint.snapshot_interval_steps=auto" and best_setting(found) is first


def test_in_a_plain_run_nothing_stands_out():
    story = ranked(begun().steps(99, 1.0, stall_s=0.001, data_s=0.002).eval(2.0).steps(1), [0.4, 0.45])
    assert causes(story.finish()) == [] and best_setting([]) is None


def test_failures_cost_what_the_ledger_has_under_their_labels():
    story = begun().steps(10).kill().start(from_step=6).steps(3).kill().start(from_step=8).steps(1)
    story.at += 30.0
    found = account(story.driver().start().steps(1).finish())
    assert [failure.kind for failure in found.failures] == ["node", "node", "driver lost"]
    assert sum(f.cost_s for f in found.failures) == pytest.approx(sum(found.ledger.labels[label] for label in COSTS))
    assert found.failures[0].seconds["lost work"] == pytest.approx(4.25)


def test_hours_that_are_over_are_no_failure():
    story = begun().steps(10)
    story.say("verdict", **{"class": TIME_LIMIT, "action": "stop", "sentence": "the run has had 2 h"})
    assert account(story.finish()).failures == []


def test_a_resize_is_no_failure_and_no_part_of_one_before_it():
    story = begun().steps(5).kill(mend_s=0.0).start(3.0).steps(5).state("RESIZING", 0.5)
    story.say("stopped", 0, "end")
    found = account(story.state("PLACING", 6.0).start(4.0).steps(1).finish())
    assert found.ledger.labels["restart"] == pytest.approx(13.0)
    assert [failure.seconds["restart"] for failure in found.failures] == pytest.approx([3.0])


def test_failures_of_all_nodes_alike_are_no_bad_nodes():
    story = begun(world_size=4, nodes=("n0", "n1"))
    for rank in (0, 3, 0, 3):
        story.steps(10).kill(rank=rank).start(6.0)
    assert [cause.name for cause in causes(story.steps(10).finish(), nodes=2)] == ["failure: node"]


def test_repeated_steps_call_for_more_snapshots():
    story = begun().steps(50, 1.0).kill().start(3.0, from_step=10).steps(60)
    (first, *_) = causes(story.finish())
    assert first.name == "failure: node" and first.setting.startswith("checkpoint.snapshot_interval_steps=")
    assert first.saving_s == pytest.approx(40.25 - 1.0), "all but the step at risk"


def test_a_run_that_failed_before_any_attempt():
    story = Story().driver()
    story.say("error", message="data.files matches nothing", user=True, type="UserError", traceback="")
    story.state("FAILED", why="data.files matches nothing")
    (first,) = causes(story)
    assert (first.name, first.evidence, first.is_end) == ("user bug", "data.files matches nothing", True)
    story = Story().driver().state("FAILED", why="no placement within 120 s")
    assert [cause.name for cause in causes(story)] == ["failure"]


def test_a_failure_that_was_mended_is_not_what_ended_the_run():
    story = begun().steps(50, 1.0).kill().start(3.0).steps(100).state("STOPPED").driver()
    story.say("error", message="data.files matches nothing", user=True, type="UserError", traceback="")
    first, *others = causes(story.state("FAILED", why="data.files matches nothing"))
    assert (first.name, first.evidence, first.is_end) == ("user bug", "data.files matches nothing", True)
    assert not any(cause.is_end for cause in others)


def test_a_run_whose_lost_node_was_not_replaced_ended_by_that():
    story = begun().steps(50, 1.0).kill().state("PLACING", 120.0).state("FAILED", why="no placement within 120 s")
    first, *others = causes(story)
    assert (first.evidence, first.is_end) == ("no placement within 120 s", True)
    assert not any(cause.is_end for cause in others)


def test_saves_that_are_rare_enough_are_no_cause():
    story = begun()
    for _ in range(2):
        story.steps(4000, 1.0).steps(1, 1.0, gap_s=100.0, stall_s=100.0)
    assert causes(story.finish()) == [], "2.4 % of the time, and one in 4000 steps is what loses least"


def test_what_storage_waits_for_in_the_background_costs_nothing():
    story = begun().steps(100, 1.0)
    story.say("checkpoint", phase="save", bytes=40e6)
    event = story.events.pop()
    story.events.append(type(event)(**{**vars(event), "start": event.start - 30.0, "duration_s": 30.0}))
    assert causes(story.finish(save_s=0.0, end_s=0.5)) == []


def test_memory_of_one_host_is_no_remedy_on_two():
    for nodes, setting in ((("a",), "data.cache=/dev/shm/zerofleet-cache"), (("a", "b"), "")):
        story = ranked(begun(nodes=nodes).steps(100, 1.0, data_s=0.2), [0.5, 0.6], [0.2, 0.3])
        first = causes(story.finish())[0]
        assert (first.name, first.setting) == ("data wait", setting)


def test_a_run_that_nobody_began_has_no_causes():
    assert causes(Story()) == []
