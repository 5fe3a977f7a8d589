"""Real Ray, agents, zygotes, forked ranks and signals; what the ranks do is small (tests/integration/fake_driver.py)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from zerofleet.cluster.local import leftovers, reap_leftovers
from zerofleet.trainer.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

JOB = """
run: {{name: {name}, storage: {storage}}}
model: {{config: {{model_type: llama}}}}
data: {{files: [python-stdlib], text_field: {target}}}
train: {{steps: {steps}, global_batch_size: 8, micro_batch_size: 2}}
cluster: {{ranks_per_node: 2, cpus_per_rank: 0.5, stall_timeout_s: 2, stop_timeout_s: 20, {cluster}}}
"""


class Workplace:
    """Runs with a driver each."""

    def __init__(self, storage: Path) -> None:
        self.storage = storage

    def run(self, name: str) -> RunFolder:
        return RunFolder(str(self.storage), name)

    def create(self, name: str, target: str = "train_until_told", cluster: str = "", steps: int = 30) -> RunFolder:
        run = self.run(name)
        run.create(JOB.format(name=name, storage=self.storage, target=target, cluster=cluster, steps=steps))
        return run

    def start(self, name: str, *overrides: str, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.integration.fake_driver", str(self.storage), name, *overrides],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def drive(self, name: str, **environment: str) -> tuple[int, str]:
        process = self.start(name, **environment)
        output, _ = process.communicate(timeout=90)
        return process.returncode, output


@pytest.fixture
def work(tmp_path):
    before = {process.pid for process in psutil.process_iter()}
    yield Workplace(tmp_path)
    # Whatever the test did, nothing of it lives on: no Ray, no agent, no zygote, no rank.
    deadline = time.monotonic() + 10
    while (left := strangers(before, tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
    assert not [leftover for leftover in leftovers() if not leftover.owner.is_alive()]


def strangers(before: set[int], storage: Path) -> list[str]:
    """Living processes of this test's drivers, whoever their parent is now: they all have the test's folder open or named."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        if process.pid in before or process.info["status"] == psutil.STATUS_ZOMBIE:
            continue
        try:
            named = [*process.info["cmdline"], *(file.path for file in process.open_files())]
        except psutil.Error:
            continue
        if any(str(storage) in name for name in named):
            found.append(" ".join(process.info["cmdline"]))
    return found


def faults(**fault) -> dict[str, str]:
    return {"ZEROFLEET_FAULTS": json.dumps([fault])}


def said(run: RunFolder, kind: str) -> list:
    return [event for event in run.events() if event.kind == kind]


def states(run: RunFolder) -> list[str]:
    return [event.data["to"] for event in said(run, "state")]


def wait_for(condition, timeout_s: float = 60):
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


def steps(run: RunFolder) -> list[tuple[int, int]]:
    return [(record["attempt"], record["step"]) for record in run.read("metrics") if record["kind"] == "step"]


def test_the_whole_way_and_no_foreign_cluster(work):
    """RAY_ADDRESS names a server that would take a connection: nobody calls."""
    run = work.create("a", target="train")
    calls = []
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        threading.Thread(target=lambda: calls.append(foreign.accept()), daemon=True).start()
        code, output = work.drive("a", RAY_ADDRESS=f"127.0.0.1:{foreign.getsockname()[1]}", HOME=str(work.storage))
        assert code == 0, output
        assert calls == []
    assert states(run) == ["PREPARING", "PLACING", "STARTING", "RUNNING", "FINISHED"]
    assert steps(run) == [(1, step) for step in range(1, 31)]
    for rank in (0, 1):
        log = (work.storage / "a" / run.log_path(1, f"rank-{rank:05d}")).read_text()
        assert log.startswith(f"rank {rank} of 2, threads 1\n")
    assert not (work.storage / ".ray").exists(), "Ray's token file belongs to the user"


def test_a_killed_rank_is_replaced_within_seconds(work):
    run = work.create("a", target="train")
    code, output = work.drive("a", **faults(kind="kill", rank=1, step=18))
    assert code == 0, output
    assert [a.start_step for a in run.attempts()] == [0, 15]
    (verdict,) = said(run, "verdict")
    assert (verdict.data["class"], verdict.data["action"], verdict.data["rank"]) == ("node", "retry", 1)
    death = next(e for e in said(run, "exit") if e.data["signal"] == signal.SIGKILL and not e.data["killed"])
    first = next(e for e in said(run, "phase") if e.attempt == 2 and e.phase == "init")
    assert first.start - death.start < 5.0, "restarting waits for nothing that takes long"
    assert steps(run)[-1] == (2, 30)


def test_a_frozen_rank_is_noticed_and_named(work):
    run = work.create("a", target="train")
    code, output = work.drive("a", **faults(kind="freeze", rank=0, step=12))
    assert code == 0, output
    (verdict,) = said(run, "verdict")
    assert (verdict.data["class"], verdict.data["rank"]) == ("hang", 0)
    assert "stopped by a signal" in verdict.data["sentence"]


def test_a_killed_agent_is_replaced(work):
    run = work.create("a", target="train", cluster="max_failures: 3")
    process = work.start("a")
    wait_for(lambda: len(steps(run)) > 2)
    (agent,) = agents_of("a")
    agent.kill()
    assert process.wait(60) == 0
    assert states(run)[4:6] == ["RECOVERING", "PLACING"]
    assert said(run, "verdict")[0].data["class"] == "node"
    assert len(run.attempts()) == 2


def agents_of(name: str) -> list[psutil.Process]:
    (ours,) = [leftover for leftover in leftovers() if leftover.run == name]
    return [process for process in ours.processes() if process.name() == "ray::NodeAgent"]


def test_a_bug_stops_at_the_second_time(work):
    run = work.create("a", target="fail")
    code, output = work.drive("a")
    assert code == 1, output
    assert len(run.attempts()) == 2
    final = said(run, "state")[-1].data
    assert final["to"] == "FAILED"
    assert "a bug on rank" in final["why"]
    assert "same traceback" in final["why"]
    assert "RuntimeError: a bug on rank" in (work.storage / "a" / run.log_path(1, "rank-00000")).read_text()
    assert list((work.storage / "a" / "logs" / "ray-0001").iterdir()), "Ray's own logs outlive it"


def test_the_users_mistake_ends_with_exit_code_2_and_no_traceback(work):
    run = work.create("a", target="refuse")
    code, output = work.drive("a")
    assert code == 2, output
    assert "Traceback" not in output
    assert len(run.attempts()) == 1
    assert said(run, "state")[-1].data["why"] == "train.global_batch_size=3 cannot be dealt: raise it"


def test_more_ranks_than_the_machine_can_ever_hold(work):
    run = work.create("a", cluster="nodes: 3")
    started = time.monotonic()
    code, output = work.drive("a")
    assert code == 2
    assert time.monotonic() - started < 10
    assert "can never hold" in output
    assert said(run, "state")[-1].data["to"] == "FAILED"
    assert not run.attempts()


def test_sigterm_stops_with_a_checkpoint_and_resume_goes_on(work):
    run = work.create("a")
    process = work.start("a")
    wait_for(lambda: len(steps(run)) > 2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    assert states(run)[-2:] == ["DRAINING", "STOPPED"]
    durable = max(e.step for e in said(run, "checkpoint"))
    (work.storage / "cache" / "stop-a").unlink()
    assert work.drive("a")[0] == 0
    assert [a.start_step for a in run.attempts()] == [0, durable]
    assert states(run)[-1] == "FINISHED"


def test_a_save_after_sigterm_may_take_long(work):
    run = work.create("a", target="save_for_long", steps=2000)
    process = work.start("a")
    wait_for(lambda: len(steps(run)) > 2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert states(run)[-2:] == ["DRAINING", "STOPPED"]
    assert "SIGTERM received" not in output and "Aborted" not in output, "no words of a crash"


def test_a_run_has_one_driver_which_a_request_in_the_run_folder_stops(work):
    run = work.create("a", steps=2000)
    run.request("stop")  # from before the driver: not for it
    time.sleep(1.1)
    process = work.start("a")
    wait_for(lambda: len(steps(run)) > 2)
    code, output = work.drive("a")
    assert code == 2
    assert f"driven by process {process.pid}" in output
    assert reap_leftovers() == [], "its driver lives"
    run.request("stop")
    assert process.wait(30) == 0
    assert states(run)[-1] == "STOPPED"


def test_a_second_sigterm_ends_at_once(work):
    run = work.create("a", target="train")  # rank 1 never hears of a stop and goes on
    process = work.start("a")
    wait_for(lambda: len(steps(run)) > 2)
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: "DRAINING" in states(run))
    process.send_signal(signal.SIGTERM)
    process.wait(15)
    assert states(run)[-1] == "STOPPED"


def test_what_a_killed_driver_leaves_is_reaped_by_the_next(work):
    run = work.create("a", cluster="max_failures: 3")
    process = work.start("a", **faults(kind="freeze", rank=0, step=20))
    wait_for(lambda: len(steps(run)) > 5)
    process.kill()
    process.wait()
    (left,) = [leftover for leftover in leftovers() if not leftover.owner.is_alive()]
    assert left.run == "a"
    assert left.processes(), "Ray lives outside the driver"
    code, output = work.drive("a")
    assert code == 0, output
    assert left.processes() == []
    assert not left.folder.exists()
    assert states(run)[-1] == "FINISHED"
    assert len(run.attempts()) == 2
