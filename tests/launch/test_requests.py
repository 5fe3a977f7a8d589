"""Requests reach the driver once, in order, and however long storage is down meanwhile."""

from __future__ import annotations

import json
import time

import pytest

from zerofleet.launch.requests import RequestWatch
from zerofleet.trainer.errors import StorageError
from zerofleet.trainer.run_folder import RunFolder


@pytest.fixture
def watch(tmp_path):
    made = []

    def start(run, after=0):
        made.append(RequestWatch(run, after, 0.01))
        made[-1].start()
        return made[-1]

    yield start
    for one in made:
        one.close()


def taken(watch, count, timeout_s=20.0):
    found, deadline = [], time.monotonic() + timeout_s
    while len(found) < count and time.monotonic() < deadline:
        found += watch.take()
        time.sleep(0.005)
    time.sleep(0.05)
    return found + watch.take()


def test_each_request_is_given_out_once_and_in_order(tmp_path, watch):
    run = RunFolder(str(tmp_path), "a")
    watching = watch(run)
    run.request("save")
    run.request("stop")
    assert taken(watching, 2) == ["save", "stop"]


def test_a_request_that_is_older_than_the_driver_is_not_for_it(tmp_path, watch):
    run = RunFolder(str(tmp_path), "a")
    run.request("stop")
    watching = watch(run, after=run.newest_request())
    run.request("save")
    assert taken(watching, 1) == ["save"]


def test_storage_that_is_down_or_damaged_ends_no_watching(watch, caplog):
    class Down:
        def __init__(self):
            self.answers = [StorageError("no route"), ValueError("no JSON"), [(1, {"action": "stop", "at": 5.0})]]

        def requests(self, after):
            answer = self.answers.pop(0) if self.answers else []
            if isinstance(answer, Exception):
                raise answer
            return answer

    assert taken(watch(Down()), 1) == ["stop"]
    assert caplog.text.count("no route") == 1 and "no JSON" not in caplog.text, "said once"


def test_a_request_from_a_host_whose_clock_is_behind_counts(tmp_path, watch):
    run = RunFolder(str(tmp_path), "a")
    run.request("save")
    watching = watch(run, after=run.newest_request())
    run.storage.create("control/0002.json", json.dumps({"action": "stop", "at": time.time() - 3600}).encode())
    assert taken(watching, 1) == ["stop"]
