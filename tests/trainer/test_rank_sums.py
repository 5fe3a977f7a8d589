"""One line for many steps of many ranks."""

from __future__ import annotations

from zerofleet.trainer.events import DRIVER, Event
from zerofleet.trainer.rank_sums import FIRST_INTERVAL_S, INTERVAL_S, RankSums


def step(rank: int, attempt: int = 1, **data: float) -> Event:
    return Event("phase" if rank else "step", attempt, rank, 3, "step", 100.0, 0.5, data)


def test_steps_are_summed_by_rank_until_it_is_time():
    now = [0.0]
    sums = RankSums(1, lambda: now[0])
    for event in (
        step(0, own_s=1.0, data_s=0.25, stall_s=0.0),
        step(1, own_s=2.0, data_s=0.5, stall_s=0.125),
        step(1, data_s=0.5, stall_s=0.125),
        step(1, attempt=2, data_s=9.0),
        Event("phase", 1, 1, 3, "save", 100.0, data={}),
    ):
        sums.hear(event)
    assert sums.take() is None
    now[0] = FIRST_INTERVAL_S
    taken = sums.take()
    assert taken is not None and (taken.kind, taken.attempt, taken.rank) == ("ranks", 1, DRIVER)
    assert taken.data == {
        "ranks": [0, 1],
        "steps": [1, 2],
        "own_s": [1.0, 2.0],
        "data_s": [0.25, 1.0],
        "stall_s": [0.0, 0.25],
    }
    sums.hear(step(0, data_s=1.0, stall_s=0.0))
    now[0] += INTERVAL_S - 1.0
    assert sums.take() is None, "a new interval"
    last = sums.take(is_last=True)
    assert last is not None and last.data["ranks"] == [0]
    assert sums.take(is_last=True) is None


def test_memory_is_the_most_so_far():
    sums = RankSums(1)
    sums.hear(step(0, data_s=0.0, memory_bytes=7))
    sums.hear(step(1, data_s=0.0))
    sums.hear(step(0, data_s=0.0, memory_bytes=5))
    taken = sums.take(is_last=True)
    assert taken is not None and taken.data["memory_bytes"] == [7, None] and "device_bytes" not in taken.data
    sums.hear(step(0, data_s=0.0))
    taken = sums.take(is_last=True)
    assert taken is not None and taken.data["memory_bytes"] == [7], "of the attempt, not of the interval"


def snapshot(rank: int, at_step: int, path: str | None = "/dev/shm/a") -> Event:
    return Event("snapshot", 1, rank, at_step, "snapshot", 100.0, 0.1, {"path": path, "world_size": 2})


def test_a_step_is_in_memory_when_all_ranks_have_it():
    sums = RankSums(1)
    for event in (snapshot(0, 4), snapshot(1, 4), snapshot(0, 6), snapshot(1, 6, path=None), step(0, data_s=0.0)):
        sums.hear(event)
    taken = sums.take(is_last=True)
    assert taken is not None and taken.data["snapshot_step"] == 4
