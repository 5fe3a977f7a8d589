"""Which process is meant."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from zerofleet.trainer.process_id import ProcessId, lives, read_stat

pytestmark = pytest.mark.timeout(60)

NOBODY = 2**22 + 1
"""Above the largest number that Linux gives."""


def test_a_process_is_alive_until_it_ends_even_before_its_parent_has_asked():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    found = ProcessId.of(process.pid)
    assert found.is_alive() and found != ProcessId.own() and ProcessId.parse(str(found)) == found
    process.stdin.close()
    while not read_stat(process.pid).is_zombie:
        time.sleep(0.01)
    assert not found.is_alive() and not lives(process.pid)
    process.wait()
    assert read_stat(process.pid) is None
    with pytest.raises(ProcessLookupError):
        ProcessId.of(process.pid)


def test_a_process_that_took_a_dead_one_s_number_is_another():
    own = ProcessId.own()
    assert own.is_alive() and own.pid == os.getpid()
    for ticks in (own.ticks - 1, own.ticks + 1):
        assert not replace(own, ticks=ticks).is_alive()
    assert not replace(own, pid=NOBODY).is_alive()


def test_ticks_are_the_kernel_s_whatever_the_clock_says(monkeypatch):
    own, real = ProcessId.own(), psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: real + 3600)
    assert ProcessId.own() == own
    born_s = own.ticks / os.sysconf("SC_CLK_TCK")
    assert 0 <= time.clock_gettime(time.CLOCK_BOOTTIME) - born_s < 24 * 3600


def test_another_boot_is_over_and_another_container_cannot_be_judged():
    own = ProcessId.own()
    before = replace(own, boot="another")
    assert not before.is_here and not before.is_alive()
    beside = replace(own, namespace=own.namespace + 1, pid=NOBODY)
    assert not beside.is_here and beside.is_alive()


def test_a_name_may_hold_anything(tmp_path):
    """The kernel puts the program's name in brackets before the numbers."""
    odd = tmp_path / "a) R 1 (b c"
    odd.symlink_to(sys.executable)
    process = subprocess.Popen([str(odd), "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    try:
        stat = read_stat(process.pid)
        assert stat.session == process.pid and stat.ticks >= ProcessId.own().ticks
    finally:
        process.communicate(b"\n")


@pytest.mark.parametrize("text", ["", "a/b/c/d", "a/1/2", "a/1/2/3/4"])
def test_what_is_no_process_is_refused(text):
    with pytest.raises(ValueError):
        ProcessId.parse(text)
