"""The head's program: whose run it is, and when it may drive it."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
import yaml

from zerofleet.launch import driver as driver_module
from zerofleet.launch import pod_driver
from zerofleet.launch.config import parse_job
from zerofleet.launch.pod_driver import main, pass_on_stop, take_run, wait_for_silence
from zerofleet.launch.run_view import RunView
from zerofleet.trainer.errors import StorageError, UserError
from zerofleet.trainer.events import DRIVER, Event
from zerofleet.trainer.run_folder import RunFolder

JOB = """
run: {name: a, storage: STORAGE}
model: {config: {model_type: llama}}
data: {files: [python-stdlib]}
train: {steps: 9, global_batch_size: 8, micro_batch_size: 2}
"""


@pytest.fixture
def job(tmp_path):
    return parse_job(JOB.replace("STORAGE", str(tmp_path / "runs")), "job")


@pytest.fixture
def driven(monkeypatch) -> list[tuple[str, str, list[str]]]:
    """What would be driven."""
    calls: list[tuple[str, str, list[str]]] = []
    monkeypatch.setattr(
        pod_driver, "drive", lambda storage, name, overrides: calls.append((storage, name, overrides)) or 0
    )
    monkeypatch.setattr(pod_driver, "keep_log", lambda run: None)  # it takes this process's output
    return calls


def claim(run: RunFolder, started_at: float, last_event_at: float) -> None:
    """A driver on another host."""
    record = {"host": "gone", "pid": 1, "pid_created": 0.0, "started_at": started_at, "overrides": []}
    run.storage.create("drivers/0001.json", json.dumps(record).encode())
    run.writer("events", 1).append(Event("info", 1, DRIVER, 0, "step", last_event_at, data={"message": ""}).to_json())


def test_the_first_life_creates_the_run_and_the_next_one_goes_on(tmp_path, job, driven):
    path = tmp_path / "job.yaml"
    path.write_text(job.to_yaml())
    assert main([str(path)]) == 0 and main([str(path)]) == 0
    assert driven == [(job.run.storage, "a", [])] * 2
    assert RunFolder(job.run.storage, "a").job_yaml() == job.to_yaml()


def test_overrides_of_a_resume_lie_beside_the_job(tmp_path, job, driven):
    path = tmp_path / "job.yaml"
    path.write_text(job.to_yaml())
    (tmp_path / "overrides.yaml").write_text("[train.steps=20, run.seed=1]")
    assert main([str(path)]) == 0
    assert driven == [(job.run.storage, "a", ["train.steps=20", "run.seed=1"])]


@pytest.mark.timeout(20)
def test_a_stop_by_the_clusters_api_reaches_the_run_once_even_where_storage_is_down_at_first(
    tmp_path, job, monkeypatch
):
    monkeypatch.setattr(pod_driver, "_STOP_LOOK_S", 0.02)
    run, request, tries = take_run(job), RunFolder.request, []

    def fails_once(self, action):
        tries.append(action)
        if len(tries) == 1:
            raise StorageError("down")
        request(self, action)

    monkeypatch.setattr(RunFolder, "request", fails_once)
    pass_on_stop(tmp_path / "stop", run)
    time.sleep(0.1)
    assert tries == [] and run.requests() == []
    (tmp_path / "stop").write_text("now")
    time.sleep(0.1)
    assert tries == []  # whoever claims the run after that would take it for another's
    driver_module.claim(run, [])
    while not run.requests():
        time.sleep(0.02)
    time.sleep(0.1)
    assert tries == ["stop", "stop"] and [request["action"] for _, request in run.requests()] == ["stop"]


def test_what_the_pod_writes_is_kept_in_the_run_folder_whatever_ends_it(tmp_path, job):
    run = take_run(job)
    program = f"""
import os, signal, sys
from zerofleet.launch.pod_driver import keep_log
from zerofleet.trainer.run_folder import RunFolder
keep_log(RunFolder({job.run.storage!r}, "a"))
print("said", flush=True)
os.write(2, b"wrong\\n")
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == -9 and done.stdout == "said\nwrong\n"
    assert run.storage.read("logs/driver-0001.log") == b"said\nwrong\n"


def test_another_jobs_run_is_not_taken(tmp_path, job, driven, capsys):
    take_run(job)
    other = job.model_copy(update={"train": job.train.model_copy(update={"steps": 10})})
    path = tmp_path / "job.yaml"
    path.write_text(other.to_yaml())
    assert main([str(path)]) == 2 and driven == []
    assert "with another job.yaml: choose another run.name" in capsys.readouterr().err


def test_a_run_that_an_older_version_began_is_gone_on_with(tmp_path, job, driven):
    fields = yaml.safe_load(job.to_yaml())
    del fields["metrics"], fields["train"]["keep_freed_memory"]  # as if these had come since
    stored = yaml.safe_dump(fields)
    run = RunFolder(job.run.storage, "a")
    run.create(stored)
    path = tmp_path / "job.yaml"
    path.write_text(job.to_yaml())
    assert main([str(path)]) == 0 and driven == [(job.run.storage, "a", [])] and run.job_yaml() == stored


def test_a_job_without_a_name_would_not_find_its_run_again(job):
    with pytest.raises(UserError, match=r"run\.name is not set"):
        take_run(job.model_copy(update={"run": job.run.model_copy(update={"name": None})}))


def test_a_missing_job_is_said(tmp_path, capsys):
    assert main([str(tmp_path / "job.yaml")]) == 4
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.timeout(20)
def test_a_driver_of_another_pod_is_waited_for_until_it_is_silent(job, monkeypatch):
    monkeypatch.setattr(pod_driver, "_LOOK_S", 0.05)
    run, now = take_run(job), time.time()
    claim(run, now - 100, now - 59)
    began = time.monotonic()
    wait_for_silence(run, patience_s=10)
    assert 0.5 < time.monotonic() - began < 5


def test_a_driver_of_another_pod_that_has_said_its_end_is_not_waited_for(job):
    run, now = take_run(job), time.time()
    claim(run, now - 100, now)
    assert RunView.of(run).is_driven
    writer = run.writer("events", 2)
    writer.append(Event("state", 1, DRIVER, 0, "end", now, data={"from": "DRAINING", "to": "STOPPED"}).to_json())
    assert not RunView.of(run).is_driven
    began = time.monotonic()
    wait_for_silence(run, patience_s=10)
    assert time.monotonic() - began < 8
    assert driver_module.claim(run, []) == 2


def test_what_an_earlier_driver_said_is_no_end_of_a_later_one(job):
    run, now = take_run(job), time.time()
    claim(run, now - 10, now - 20)
    run.writer("events", 2).append(Event("state", 1, DRIVER, 0, "end", now - 15, data={"to": "STOPPED"}).to_json())
    assert RunView.of(run).is_driven


@pytest.mark.timeout(20)
def test_patience_has_an_end_and_a_dead_driver_costs_none(job, monkeypatch):
    monkeypatch.setattr(pod_driver, "_LOOK_S", 0.05)
    run, now = take_run(job), time.time()
    claim(run, now - 100, now)
    began = time.monotonic()
    wait_for_silence(run, patience_s=0.3)
    assert 0.2 < time.monotonic() - began < 5


def test_nobody_is_waited_for_where_nobody_drove(job):
    began = time.monotonic()
    wait_for_silence(take_run(job), patience_s=10)
    assert time.monotonic() - began < 8
