"""The preStop hook: has a living run saved, and holds up nobody else."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from dataclasses import replace

import pytest

from zerofleet.cluster import ray_nodes
from zerofleet.launch.pod_save import main
from zerofleet.trainer.errors import ZerofleetError
from zerofleet.trainer.events import DRIVER, Event
from zerofleet.trainer.process_id import ProcessId
from zerofleet.trainer.run_folder import CheckpointId, RunFolder

JOB = """
run: {name: a, storage: /elsewhere}
model: {config: {model_type: llama}}
data: {files: [python-stdlib]}
train: {steps: 9, global_batch_size: 8, micro_batch_size: 2}
"""


@pytest.fixture
def run(tmp_path) -> RunFolder:
    folder = RunFolder(str(tmp_path), "a")
    folder.create(JOB)
    return folder


def drive(run: RunFolder, state: str = "RUNNING", pid: int | None = None) -> None:
    """This process, or another, becomes the run's driver."""
    record = {
        "host": socket.gethostname(),
        "pid": pid or os.getpid(),
        "process": str(replace(ProcessId.own(), pid=pid or os.getpid())),
        "started_at": time.time(),
        "overrides": [],
    }
    run.storage.create("drivers/0001.json", json.dumps(record).encode())
    event = Event("state", 1, DRIVER, 0, "step", time.time(), data={"from": "", "to": state, "why": ""})
    run.writer("events", 1).append(event.to_json())


def save(run: RunFolder, *more: str, timeout_s: float = 5.0) -> tuple[int, float]:
    began = time.monotonic()
    return main([run.storage.path(), "--timeout", str(timeout_s), *more]), time.monotonic() - began


def say_state(run: RunFolder, before: str, after: str, writer: int = 2) -> None:
    event = Event("state", 1, DRIVER, 9, "step", time.time(), data={"from": before, "to": after, "why": ""})
    run.writer("events", writer).append(event.to_json())


def checkpoint(run: RunFolder, step: int) -> None:
    run.storage.create(CheckpointId(step, 1).manifest, b"{}")


@pytest.mark.timeout(20)
def test_a_living_run_is_asked_and_its_checkpoint_awaited(run):
    drive(run)
    checkpoint(run, 3)

    def obey() -> None:
        while not run.requests():
            time.sleep(0.02)
        checkpoint(run, 5)

    obeys = threading.Thread(target=obey)
    obeys.start()
    code, took_s = save(run)
    obeys.join()
    assert code == 0 and took_s < 4
    assert [request["action"] for _, request in run.requests()] == ["save"]


@pytest.mark.timeout(20)
def test_a_save_that_does_not_come_is_not_waited_for_longer_than_allowed(run, capsys):
    drive(run)
    checkpoint(run, 3)
    code, took_s = save(run, timeout_s=0.7)
    assert code == 3 and 0.6 < took_s < 3
    assert "no checkpoint newer than step 3 in time" in capsys.readouterr().err


@pytest.mark.timeout(20)
@pytest.mark.parametrize("state", ["FINISHED", "STOPPED", "FAILED"])
def test_a_run_that_has_ended_is_left_alone(run, state):
    drive(run, state)
    code, took_s = save(run)
    assert code == 0 and took_s < 2 and run.requests() == []


@pytest.mark.timeout(20)
def test_a_run_that_nobody_drives_and_one_that_is_not_there_are_left_alone(run):
    drive(run, pid=2**22 - 1)
    code, took_s = save(run)
    assert code == 0 and took_s < 2 and run.requests() == []
    assert main([f"{run.storage.path()}-other", "--timeout", "5"]) == 0


@pytest.mark.timeout(20)
def test_a_run_that_ends_meanwhile_is_not_waited_for(run):
    drive(run)

    def end() -> None:
        while not run.requests():
            time.sleep(0.02)
        event = Event("state", 1, DRIVER, 9, "step", time.time(), data={"from": "", "to": "FINISHED", "why": ""})
        run.writer("events", 2).append(event.to_json())

    ends = threading.Thread(target=end)
    ends.start()
    code, took_s = save(run)
    ends.join()
    assert code == 0 and took_s < 4


@pytest.mark.timeout(20)
def test_a_worker_has_ray_take_notice_and_waits_until_the_run_has_left(run, monkeypatch):
    given: list[tuple[str, float, str]] = []
    monkeypatch.setattr(ray_nodes, "give_notice", lambda *notice: given.append(notice))
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setenv("ZEROFLEET_NODE", "gke-7")
    drive(run)

    def leave() -> None:
        while not given:
            time.sleep(0.02)
        say_state(run, "RUNNING", "RESIZING")
        checkpoint(run, 5)
        time.sleep(1.0)
        say_state(run, "RESIZING", "PLACING", writer=3)

    leaves = threading.Thread(target=leave)
    leaves.start()
    code, took_s = save(run, "--leave")
    leaves.join()
    assert code == 0 and 1.0 <= took_s < 4, "not before its agent is gone"
    ((address, notice_s, why),) = given
    assert address == "head:6379" and 4 < notice_s <= 5 and f"pod {os.uname().nodename} on node gke-7" in why
    assert run.requests() == [], "a save besides would cost a step"


@pytest.mark.timeout(20)
def test_a_worker_whose_node_is_not_left_in_time_is_not_held_up(run, monkeypatch, capsys):
    monkeypatch.setattr(ray_nodes, "give_notice", lambda *notice: None)
    drive(run)
    checkpoint(run, 3)
    code, took_s = save(run, "--leave", timeout_s=0.7)
    assert code == 3 and 0.6 < took_s < 3 and "has not left this node in time" in capsys.readouterr().err


@pytest.mark.timeout(20)
def test_a_worker_that_ray_does_not_hear_asks_for_a_save(run, monkeypatch, capsys):
    def refuse(*notice: object) -> None:
        raise ZerofleetError("Ray knows no such node")

    monkeypatch.setattr(ray_nodes, "give_notice", refuse)
    drive(run)
    code, _ = save(run, "--leave", timeout_s=0.7)
    assert code == 3 and [request["action"] for _, request in run.requests()] == ["save"]
    assert "asked to save only: Ray knows no such node" in capsys.readouterr().err


@pytest.mark.timeout(20)
def test_a_worker_of_a_run_that_has_ended_gives_no_notice(run, monkeypatch):
    monkeypatch.setattr(ray_nodes, "give_notice", lambda *notice: pytest.fail("the run is over"))
    drive(run, "FINISHED")
    assert save(run, "--leave")[0] == 0
