"""Records of local Rays, without a Ray."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest

from zerofleet.cluster import local
from zerofleet.cluster.local import BELONGS_TO, HeadRequest, Leftover, leftovers, own_environment, reap_leftovers
from zerofleet.cluster.zygote_process import ZygoteSpec
from zerofleet.trainer.process_id import ProcessId

GONE = replace(ProcessId.own(), pid=2**22 + 1)


@pytest.fixture
def temp(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_short_temp", lambda: tmp_path)
    return tmp_path


def leave(temp, name: str, owner: ProcessId, head: ProcessId) -> Leftover:
    folder = temp / f"zf-{name}"
    folder.mkdir()
    leftover = Leftover(folder, f"run-{name}", owner, head)
    leftover.write()
    return leftover


def sleeper(belongs_to: str = "") -> subprocess.Popen:
    """A process that is its own session, as a head is, with a child in it."""
    script = "import subprocess,sys; p=subprocess.Popen(['sleep','60']); print(flush=True); p.wait()"
    environment = {**os.environ, BELONGS_TO: belongs_to} if belongs_to else None
    process = subprocess.Popen(
        [sys.executable, "-c", script], start_new_session=True, stdout=subprocess.PIPE, env=environment
    )
    process.stdout.readline()
    return process


def test_a_request_survives_its_command_line():
    for zygote in (None, ZygoteSpec("m:f", "llama", "cpu", "/tmp/log")):
        request = HeadRequest("/tmp/zf-1", "r", ProcessId.own(), 2, 0, zygote)
        assert HeadRequest.from_json(request.to_json()) == request


def test_only_what_a_dead_driver_left_is_reaped(temp):
    mine, theirs = sleeper(), sleeper()
    leave(temp, "mine", ProcessId.of(os.getpid()), ProcessId.of(mine.pid))
    orphan = leave(temp, "orphan", GONE, ProcessId.of(theirs.pid))
    assert len(orphan.processes()) == 2
    try:
        assert [leftover.run for leftover in reap_leftovers()] == ["run-orphan"]
        theirs.wait(10)
        assert orphan.processes() == []
        assert not orphan.folder.exists()
        assert mine.poll() is None
        assert [leftover.run for leftover in leftovers()] == ["run-mine"]
    finally:
        reap_leftovers(owner_dead_only=False)
    mine.wait(10)


def test_a_session_that_another_process_has_now_is_left_alone(temp):
    """The record is older than the process, as that of a host that crashed: its head's number has been given away since."""
    other = sleeper()
    its = ProcessId.of(other.pid)
    leave(temp, "stale", GONE, replace(its, ticks=its.ticks - 100))
    leave(temp, "older", GONE, replace(its, boot="before"))
    try:
        assert {leftover.run for leftover in reap_leftovers()} == {"run-stale", "run-older"}
        assert other.poll() is None
        assert not list(temp.iterdir())
    finally:
        Leftover(temp / "x", "x", GONE, its).end()
        other.wait(10)


def test_what_a_dead_head_left_is_known_by_what_it_says_of_itself(temp):
    """Its children live on in its session. Those of another Ray whose head had that number say so, or nothing."""
    for belongs_to, num_ended in ((temp / "zf-ours", 1), (temp / "zf-theirs", 0), ("", 0)):
        head = sleeper(str(belongs_to))
        leftover = leave(temp, "ours", GONE, ProcessId.of(head.pid))
        (child,) = psutil.Process(head.pid).children()
        head.kill()
        head.wait(10)
        try:
            assert child.is_running() and len(leftover.processes()) == num_ended
            assert leftover.end() == num_ended
            assert (child.is_running() and child.status() != psutil.STATUS_ZOMBIE) != bool(num_ended)
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def test_the_ray_of_a_living_driver_is_left_alone_whatever_the_clock_says(temp, monkeypatch):
    head = sleeper()
    leave(temp, "mine", ProcessId.own(), ProcessId.of(head.pid))
    real = psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: real + 5)
    try:
        assert reap_leftovers() == []
        assert head.poll() is None
    finally:
        monkeypatch.undo()
        monkeypatch.setattr(local, "_short_temp", lambda: temp)
        reap_leftovers(owner_dead_only=False)
        head.wait(10)


def test_a_record_of_an_older_version_is_said_and_nothing_is_ended(temp, caplog):
    other = sleeper()
    old = {"owner": {"pid": GONE.pid, "created": 1.0}, "head": {"pid": other.pid, "created": 1.0}}
    (temp / "zf-old").mkdir()
    (temp / "zf-old" / "zerofleet.json").write_text(json.dumps({"folder": "f", "run": "r", **old}))
    try:
        assert reap_leftovers() == [] and other.poll() is None
        assert "remove its folder by hand" in caplog.text and (temp / "zf-old").exists()
    finally:
        Leftover(temp / "x", "x", GONE, ProcessId.of(other.pid)).end()
        other.wait(10)


def test_a_record_that_cannot_be_read_is_said_and_left(temp, caplog):
    (temp / "zf-bad").mkdir()
    (temp / "zf-bad" / "zerofleet.json").write_text("{")
    assert leftovers() == []
    assert "remove its folder by hand" in caplog.text


def test_a_foreign_cluster_is_forgotten(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "theirs")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    own_environment()
    assert "RAY_ADDRESS" not in os.environ
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert os.environ["RAY_AUTH_TOKEN"] != "theirs"


def test_sockets_stay_short_when_the_temporary_folder_is_deep(monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/very/deep/temporary/folder/of/somebody")
    assert str(local._short_temp()) == "/tmp"
