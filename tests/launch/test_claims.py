"""Who may drive a run: a process of this host, or one that was handed to a cluster."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from zerofleet.launch import claims
from zerofleet.launch.claims import Handed, claim
from zerofleet.launch.drivers import JobRecord, driver_records, job_records, next_number, write_job_record
from zerofleet.trainer.errors import StorageError, UserError
from zerofleet.trainer.process_id import ProcessId
from zerofleet.trainer.run_folder import RunFolder

ELSEWHERE = {"host": "elsewhere", "process": str(replace(ProcessId.own(), boot="another"))}


@pytest.fixture
def run(tmp_path) -> RunFolder:
    folder = RunFolder(str(tmp_path), "a")
    folder.create("")
    return folder


def record_of(who: subprocess.Popen, run: RunFolder, number: int, **changes) -> None:
    record = {
        "host": socket.gethostname(),
        "pid": who.pid,
        "process": str(ProcessId.of(who.pid)),
        "started_at": time.time(),
        "overrides": [],
    }
    run.storage.create(f"drivers/{number:04d}.json", json.dumps(record | changes).encode())


@pytest.fixture
def other():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def test_a_claim_names_this_process(run):
    assert claim(run, ["train.steps=5"]) == 1
    (record,) = driver_records(run)
    assert (record.pid, record.host, record.overrides) == (os.getpid(), socket.gethostname(), ("train.steps=5",))
    assert record.is_alive(0.0)


def test_a_living_driver_keeps_the_run(run, other):
    record_of(other, run, 1)
    with pytest.raises(UserError, match=f"driven by process {other.pid}"):
        claim(run, [])
    other.kill()
    other.wait()
    assert claim(run, []) == 2


def test_a_driver_on_another_host_is_judged_by_its_last_event(run, other):
    record_of(other, run, 1, **ELSEWHERE)
    with pytest.raises(UserError, match="on elsewhere"):
        claim(run, [])


def test_a_silent_driver_on_another_host_is_gone(run, other):
    record_of(other, run, 1, **ELSEWHERE, started_at=time.time() - 1000)
    assert claim(run, []) == 2


def test_two_claims_at_once(run, monkeypatch):
    monkeypatch.setattr(claims, "driver_records", lambda run: [])
    monkeypatch.setattr(claims, "next_number", lambda run: 1)
    claim(run, [])
    with pytest.raises(UserError, match="at this moment"):
        claim(run, [])


def test_whoever_claims_while_another_looks_who_drives_is_not_overtaken(run, monkeypatch):
    """Of a run whose last driver is on another host, all events are read first: that may take minutes."""
    record_of(subprocess.Popen(["true"]), run, 1, **ELSEWHERE)

    def look(run, record) -> bool:
        monkeypatch.setattr(claims, "_is_alive", lambda run, record: False)
        assert claim(run, []) == 2
        return False

    monkeypatch.setattr(claims, "_is_alive", look)
    with pytest.raises(UserError, match="at this moment"):
        claim(run, [])
    assert [record.number for record in driver_records(run)] == [1, 2]


# -- drivers that are jobs -----------------------------------------------------------------------------------------
def handed(number: int, after: int = 0) -> Handed:
    return Handed(number, after, "10.0.0.1:6379")


def job(number: int) -> JobRecord:
    return JobRecord(number, "ray", "http://head:8265", f"a-{number:04d}-0", time.time())


def test_a_job_has_its_number_before_it_claims_it(run):
    write_job_record(run, job(1))
    assert next_number(run) == 2 and driver_records(run) == []
    assert claim(run, [], handed(1)) == 1
    assert [record.number for record in driver_records(run)] == [1]
    assert [(record.number, record.job) for record in job_records(run)] == [(1, "a-0001-0")]


def test_a_job_that_never_began_leaves_its_number_unused(run):
    write_job_record(run, job(1))
    assert claim(run, []) == 2


def test_two_submissions_of_one_run_cannot_both_have_a_number(run):
    write_job_record(run, job(1))
    with pytest.raises(UserError, match="being submitted by somebody else"):
        write_job_record(run, job(1))


def test_a_job_takes_over_from_a_driver_that_its_cluster_says_is_gone(run, other):
    """Its last event is of a moment ago: without that word it would be taken for alive."""
    record_of(other, run, 1, **ELSEWHERE)
    with pytest.raises(UserError, match="on elsewhere"):
        claim(run, [], handed(2, after=0))
    assert claim(run, [], handed(2, after=1)) == 2


def test_a_job_that_begins_too_late_leaves_the_run_alone(run, other):
    record_of(other, run, 3, **ELSEWHERE, started_at=time.time() - 1000)
    with pytest.raises(UserError, match="was taken by driver 3 before this one, 2"):
        claim(run, [], handed(2, after=1))


def test_a_damaged_record_of_a_job_is_named(run):
    run.storage.create("drivers/0001.job.json", b"{}")
    with pytest.raises(StorageError, match=r"drivers/0001\.job\.json is no record"):
        job_records(run)
