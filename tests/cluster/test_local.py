"""Records of local Rays, without a Ray."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from zerofleet.cluster import local
from zerofleet.cluster.local import HeadRequest, Leftover, ProcessId, leftovers, own_environment, reap_leftovers
from zerofleet.cluster.zygote_process import ZygoteSpec

GONE = ProcessId(pid=2**22 + 1, created=1.0)


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


def sleeper() -> subprocess.Popen:
    """A process that is its own session, as a head is, with a child in it."""
    script = "import subprocess,sys; p=subprocess.Popen(['sleep','60']); print(flush=True); p.wait()"
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True, stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def test_a_request_survives_its_command_line():
    for zygote in (None, ZygoteSpec("m:f", "llama", "cpu", "/tmp/log")):
        request = HeadRequest("/tmp/zf-1", "r", ProcessId(1, 2.5), 2, 0, zygote)
        assert HeadRequest.from_json(request.to_json()) == request


def test_a_process_that_took_a_dead_ones_number_is_another():
    assert ProcessId.of(os.getpid()).is_alive()
    assert not ProcessId(os.getpid(), time.time() - 10**6).is_alive()
    assert not GONE.is_alive()


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
    other = sleeper()
    stale = leave(temp, "stale", GONE, ProcessId(other.pid, time.time() + 1000))
    try:
        assert stale.end() == 0
        assert other.poll() is None
    finally:
        Leftover(temp, "x", GONE, ProcessId.of(other.pid)).end()
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
