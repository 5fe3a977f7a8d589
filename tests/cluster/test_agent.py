"""The node agent, without ranks and without Ray."""

from __future__ import annotations

import pytest

from tests.trainer.checkpoint.test_snapshot import fill
from zerofleet.cluster import agent as agent_module
from zerofleet.cluster.agent import NodeAgent
from zerofleet.cluster.results import ResultLog
from zerofleet.cluster.spec import NodeSpec
from zerofleet.trainer.checkpoint.buffer_set import BufferSet
from zerofleet.trainer.events import Event

pytestmark = pytest.mark.timeout(60)


class NoRanks:
    def __init__(self, *arguments):
        pass

    def living(self):
        return []

    def close(self):
        pass


@pytest.fixture
def spec(tmp_path, monkeypatch):
    monkeypatch.setattr(agent_module, "Ranks", NoRanks)
    folders = {"log_folder": str(tmp_path / "logs"), "storage_url": str(tmp_path), "snapshots": str(tmp_path / "shm")}
    return NodeSpec("r", 0, "cpu", namespace="r-1", **folders)


def test_memory_that_cannot_be_read_is_left_out_and_said_once(spec, tmp_path):
    buffers = BufferSet(tmp_path / "shm", 0, 3)
    fill(buffers, 1)
    broken = fill(buffers, 2)
    broken.write_bytes(broken.read_bytes()[:-1])
    log = ResultLog(tmp_path / "shm", "r-1")
    log.append(Event("step", 1, 0, 1, "step", 1.0))
    log.append(Event("step", 1, 0, 2, "step", 2.0))
    results = tmp_path / "shm/results-r-1.newer.jsonl"
    results.write_bytes(b"?" + results.read_bytes()[1:])

    agent = NodeAgent(spec)
    try:
        for _ in range(3):
            assert [info.meta.step for info in agent.snapshots()] == [1]
        events = agent.poll(0.0)
    finally:
        agent.close()
    said = [event.data["message"] for event in events if event.kind == "incident"]
    assert len(said) == 2 and f"{results} on" in said[0] and f"{broken} on" in said[1]
    ((recalled,),) = [event.data["events"] for event in events if event.kind == "recalled"]
    assert recalled["step"] == 2
