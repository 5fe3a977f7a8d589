"""The driver's own decisions, without Ray: who may drive, which job, which requests, which mistakes."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace

import pytest

from zerofleet.cluster.event_log import EventLog
from zerofleet.cluster.policy.failure import Terms
from zerofleet.launch import driver
from zerofleet.launch.claims import claim
from zerofleet.launch.driver import Driver, Program, drive, main
from zerofleet.launch.drivers import driver_records, effective_job
from zerofleet.launch.stops import Stops
from zerofleet.trainer.credentials import VARIABLE as CREDENTIALS
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.recorder import Recorder
from zerofleet.trainer.run_folder import RunFolder

JOB = """
run: {name: a, storage: /elsewhere}
model: {config: {model_type: llama}}
data: {files: [python-stdlib]}
train: {steps: 3, global_batch_size: 8, micro_batch_size: 2}
cluster: {ranks_per_node: 2, cpus_per_rank: 0.1}
"""


@pytest.fixture
def run(tmp_path) -> RunFolder:
    folder = RunFolder(str(tmp_path), "a")
    folder.create(JOB)
    return folder


@pytest.fixture
def stops():
    kept = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    yield Stops()
    for number, handler in kept:
        signal.signal(number, handler)


@pytest.fixture
def make_driver(run, stops):
    logs = []

    def make() -> Driver:
        job = effective_job(run)
        logs.append(EventLog(lambda attempt: Recorder(run, attempt, job.train_config())))
        claim(run, [])  # a driver looks into its own record
        return Driver(run, job, 1, logs[-1], Program(), stops)

    yield make
    for log in logs:
        log.close()


def test_a_wrong_override_is_refused_before_it_is_recorded(run, stops):
    with pytest.raises(UserError, match=r"train\.stepz"):
        drive(str(run.storage.url).removesuffix("/a"), "a", ["train.stepz=5"])
    assert driver_records(run) == []


def test_a_driver_goes_on_with_a_micro_batch_that_was_halved_and_hands_it_on(run, make_driver):
    asked = effective_job(run).train.micro_batch_size
    whole = make_driver()
    assert whole._terms == Terms(micro_batch_size=asked)
    assert whole._claim_attempt(1, None, 2, whole._terms).micro_batch_size == asked and not run.attempts()[0].halved
    whole._claim_attempt(2, None, 2, replace(whole._terms, micro_batch_size=1))
    assert run.attempts()[1].halved == [asked, 1] and asked > 1
    assert make_driver()._terms == Terms(micro_batch_size=1)


def test_the_first_signal_asks_for_a_stop_and_the_second_for_the_end(make_driver):
    made = make_driver()
    assert made._requests() == []
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    assert made._requests() == ["stop", "end"]
    assert made._requests() == []


@pytest.mark.parametrize(
    ("faults", "cluster", "words"),
    [
        ("", "cluster.nodes=3", "can never hold"),
        ("", "cluster.cpus_per_rank=1000", "can never hold"),
        ('[{"kind": "explode"}]', "cluster.nodes=1", "give kind, rank and step"),
    ],
)
def test_a_mistake_that_is_known_before_anything_starts(run, faults, cluster, words, monkeypatch, stops):
    monkeypatch.setenv("ZEROFLEET_FAULTS", faults)
    monkeypatch.setattr("zerofleet.launch.driver.OwnRay", lambda *arguments: pytest.fail("Ray was started"))
    storage = str(run.storage.url).removesuffix("/a")
    with pytest.raises(UserError, match=words):
        drive(storage, "a", [cluster])
    states = [event for event in run.events() if event.kind == "state"]
    assert states[-1].data["to"] == "FAILED"
    assert words in states[-1].data["why"]
    assert any(event.kind == "error" and event.data["user"] for event in run.events())


def test_the_log_says_what_happens_and_why_the_run_failed(make_driver, run, capsys):
    made = make_driver()
    made._say("heartbeat")
    made._say("state", **{"from": "PENDING", "to": "RUNNING", "why": ""})
    made._say("state", **{"from": "RUNNING", "to": "FAILED", "why": "rank 1 was killed.\nStopping"})
    made._log.close()
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert [line for _, line in lines] == ["RUNNING", "FAILED: rank 1 was killed. Stopping"]
    time.strptime(lines[0][0], "%Y-%m-%d %H:%M:%S")
    assert [event.kind for event in run.events()] == ["heartbeat", "state", "state"]


def test_ranks_read_the_folder_that_the_driver_was_given(run, stops, monkeypatch):
    """The run folder may have been moved or mounted elsewhere since job.yaml was written."""
    seen = []

    class Kept:
        def __init__(self, run, job, *rest) -> None:
            seen.append(job)

        def run(self) -> int:
            return 0

    monkeypatch.setattr(driver, "Driver", Kept)
    storage = str(run.storage.url).removesuffix("/a")
    assert drive(storage, "a") == 0
    assert seen[0].run.storage == storage


def test_what_a_driver_says_holds_no_credentials(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STORE_KEY", "wJalrXUtnFEMI")
    monkeypatch.setenv(CREDENTIALS, "STORE_KEY")
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    assert main([str(tmp_path), "a", "--override", "train.wJalrXUtnFEMI=3"]) == 2
    told = capsys.readouterr().err
    assert "error: " in told and "***" in told and "wJalrXUtnFEMI" not in told
