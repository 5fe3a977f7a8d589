"""Whether a run's driver lives, by its claim."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import replace

import psutil
import pytest

from zerofleet.trainer.driver_records import OTHER_HOST_SILENCE_S, driver_records
from zerofleet.trainer.errors import StorageError
from zerofleet.trainer.process_id import ProcessId
from zerofleet.trainer.run_folder import RunFolder

LONG_AGO = 1.0


@pytest.fixture
def run(tmp_path) -> RunFolder:
    folder = RunFolder(str(tmp_path), "a")
    folder.create("run: {name: a}")
    return folder


def record(run: RunFolder, **fields):
    claim = {"host": socket.gethostname(), "pid": os.getpid(), "started_at": LONG_AGO, "overrides": []}
    run.storage.create(f"drivers/{len(driver_records(run)) + 1:04d}.json", json.dumps(claim | fields).encode())
    return driver_records(run)[-1]


def test_the_clock_has_no_say(run, monkeypatch):
    claim = record(run, process=str(ProcessId.own()))
    real = psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: real + 5)
    assert claim.is_alive(LONG_AGO) and claim.is_this_process


def test_a_process_with_the_same_number_is_another(run):
    own = ProcessId.own()
    claim = record(run, process=str(replace(own, ticks=own.ticks + 1)))
    assert claim.is_here and not claim.is_alive(time.time()) and not claim.is_this_process


def test_who_cannot_be_seen_is_alive_as_long_as_it_speaks(run):
    claim = record(run, process=str(replace(ProcessId.own(), namespace=1)))
    assert not claim.is_here and not claim.is_this_process
    assert claim.is_alive(time.time()) and not claim.is_alive(time.time() - 2 * OTHER_HOST_SILENCE_S)


def test_an_old_claim_is_alive_where_that_is_not_ruled_out(run):
    born = psutil.Process().create_time()
    assert record(run, pid_created=born).is_alive(LONG_AGO)
    moved = record(run, pid_created=born - 5)
    assert moved.is_alive(time.time()), "the clock may have been set"
    assert not moved.is_alive(LONG_AGO) and not moved.is_this_process
    assert not record(run, pid=2**22 + 1, pid_created=born).is_alive(time.time())


def test_a_claim_that_names_no_process_is_damaged(run):
    with pytest.raises(StorageError, match="no driver's claim"):
        record(run, process="who?")
