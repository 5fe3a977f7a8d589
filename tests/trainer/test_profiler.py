"""Traces of some steps: what is in them, who tells of them, and that training goes on whatever becomes of them."""

from __future__ import annotations

import gzip
import json

import pytest
import torch

from zerofleet.trainer import profiler
from zerofleet.trainer.config import ProfileConfig
from zerofleet.trainer.errors import StorageError
from zerofleet.trainer.events import Control
from zerofleet.trainer.profiler import MOST_OPS, Profiler, highest, memory_points
from zerofleet.trainer.reporter import Reporter, no_fault
from zerofleet.trainer.storage import Storage
from zerofleet.trainer.world import World

pytestmark = pytest.mark.timeout(60)


class Rank:
    """Steps that multiply two matrices and keep 4 MiB."""

    def __init__(self, folder, wanted, rank=0, attempt=1) -> None:
        self.events, self.kept = [], []
        self.reporter = Reporter(World(rank, rank, 0, 2, "a", attempt), self.events.append, no_fault)
        self.storage = Storage(str(folder))
        device = torch.device("cpu")
        self.profiler = Profiler(wanted, World(rank, rank, 0, 2, "a", attempt), self.storage, self.reporter, device)

    def steps(self, count: int) -> None:
        for _ in range(count):
            assert self.profiler.step(self.step) == Control("save")

    def step(self) -> Control:
        self.kept.append(torch.ones(1024, 1024) @ torch.ones(1024, 1024))
        self.reporter.step += 1
        return Control("save")

    def told(self, kind):
        return [event for event in self.events if event.kind == kind]


def test_the_wanted_steps_are_traced_and_no_others(tmp_path):
    rank = Rank(tmp_path, ProfileConfig(steps=(2, 3)))
    rank.steps(5)
    (event,) = rank.told("profile")
    assert event.data["steps"] == [2, 3] and event.data["path"] == "profile/attempt-0001/rank-00000.trace.json.gz"
    trace = json.loads(gzip.decompress(rank.storage.read(event.data["path"])))["traceEvents"]
    names = [entry["name"] for entry in trace if entry.get("ph") == "X"]
    assert {name for name in names if name.startswith("step ")} == {"step 2", "step 3"}
    assert names.count("aten::mm") == 2
    ops = event.data["ops"]
    assert ops[0]["name"] == "aten::mm" and ops[0]["calls"] == 2 and 0 < len(ops) <= MOST_OPS
    assert [op["self_s"] for op in ops] == sorted((op["self_s"] for op in ops), reverse=True)
    (points,) = event.data["memory"].values()
    assert max(size for _, size in points) == pytest.approx(4 * 4 * 2**20, rel=0.01), (
        "two kept, two that are multiplied"
    )
    assert points[-1][1] == pytest.approx(2 * 4 * 2**20, rel=0.01)
    assert json.dumps(event.data)


def test_all_ranks_say_where_they_are_while_some_are_traced(tmp_path):
    """Else those that wait for them would be taken for hung."""
    for rank in (Rank(tmp_path, ProfileConfig(steps=(1, 2), ranks=(1,)), number) for number in (0, 1)):
        rank.steps(3)
        signs = [(event.phase, event.step) for event in rank.told("phase")]
        assert signs == [("profile", 0), ("profile", 1), ("profile", 2)]
        assert len(rank.told("profile")) == rank.profiler._world.rank


def test_a_run_that_ends_before_the_last_step_keeps_what_there_is(tmp_path):
    rank = Rank(tmp_path, ProfileConfig(steps=(2, 9)))
    rank.steps(3)
    rank.profiler.close()
    rank.profiler.close()
    assert [event.data["steps"] for event in rank.told("profile")] == [[2, 3]]


def test_a_later_attempt_within_the_steps_traces_the_rest_in_a_file_of_its_own(tmp_path):
    for attempt in (1, 2):
        rank = Rank(tmp_path, ProfileConfig(steps=(2, 3)), attempt=attempt)
        rank.reporter.step = attempt
        rank.steps(2)
    (event,) = rank.told("profile")
    assert event.data["steps"] == [3, 3]
    assert rank.storage.list("profile") == ["attempt-0001", "attempt-0002"]


def test_without_the_setting_nothing_is_done(tmp_path):
    rank = Rank(tmp_path, None)
    rank.steps(2)
    rank.profiler.close()
    assert rank.events == [] and rank.storage.list() == []


def test_a_trace_that_storage_does_not_take_is_an_incident(tmp_path, monkeypatch):
    def down(path, chunks):
        raise StorageError("writing failed: no room")

    rank = Rank(tmp_path, ProfileConfig(steps=(1, 1)))
    monkeypatch.setattr(rank.storage, "write_stream", down)
    rank.steps(2)
    (incident,) = rank.told("incident")
    assert incident.data["class"] == "storage"
    assert "the trace of steps 1 to 1 was not kept: writing failed: no room" in incident.data["message"]


def test_a_profiler_that_fails_is_an_incident(tmp_path, monkeypatch):
    def full(self, path):
        raise OSError("No space left on device")

    rank = Rank(tmp_path, ProfileConfig(steps=(1, 2)))
    monkeypatch.setattr(profiler.profile, "export_chrome_trace", full)
    rank.steps(3)
    (incident,) = rank.told("incident")
    assert "steps 1 to 2 was not kept: No space left" in incident.data["message"]
    other = Rank(tmp_path, ProfileConfig(steps=(1, 2)))
    monkeypatch.setattr(profiler.profile, "start", lambda self: full(self, ""))
    other.steps(3)
    assert ["nothing can be traced" in event.data["message"] for event in other.told("incident")] == [True]


def test_a_trace_that_is_too_large_to_be_read_is_kept_without_its_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(profiler, "MOST_READ_BYTES", 10)
    rank = Rank(tmp_path, ProfileConfig(steps=(1, 1)))
    rank.steps(1)
    (event,) = rank.told("profile")
    assert event.data["memory"] == {} and event.data["ops"] and rank.storage.exists(event.data["path"])


def test_memory_is_told_by_device_from_the_traces_beginning():
    def memory(ts, device, total):
        return {"name": "[memory]", "ph": "i", "ts": ts, "args": {"Device Type": device, "Total Allocated": total}}

    events = [
        {"name": "aten::mm", "ph": "X", "ts": 1_000_000.0, "dur": 5},
        {"name": "process_name", "ph": "M", "ts": 0},
        memory(3_000_000.0, 1, 70),
        memory(2_000_000.0, 0, 7),
        memory(2_500_000.0, 1, 50),
    ]
    assert memory_points(events) == {"cpu": [(1.0, 7)], "cuda": [(1.5, 50), (2.0, 70)]}
    assert memory_points([]) == {}


def test_of_many_points_each_stretch_keeps_its_highest():
    points = [(float(n), n % 10) for n in range(1000)]
    kept = highest(points, 100)
    assert len(kept) == 100 and {size for _, size in kept} == {9}
    assert highest(points[:50], 100) == points[:50]
    assert highest([(0.0, n) for n in range(200)], 100) == [(0.0, 199)], "all at one moment"


@pytest.mark.parametrize("wrong", [{"steps": [3, 2]}, {"steps": [0, 2]}, {"steps": [1, 2], "ranks": []}])
def test_steps_in_their_order_and_at_least_one_rank(wrong):
    with pytest.raises(ValueError):
        ProfileConfig(**wrong)
