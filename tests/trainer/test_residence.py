"""What a process holds, and held at most."""

import os
import subprocess
import sys

import pytest

from zerofleet.trainer.residence import Residence, free_bytes

CODE = """
import mmap, sys
with mmap.mmap(-1, 64 << 20) as block:
    block.write(bytes(64 << 20))
print("freed", flush=True)
sys.stdin.read()
"""


ROLLUP = """55d0-7ffc ---p 00000000 00:00 0    [rollup]
Rss:                9000 kB
Pss_Shmem:           500 kB
Private_Clean:       100 kB
Private_Dirty:      4000 kB
Private_Hugetlb:       0 kB
"""


def test_snapshots_and_what_is_shared_do_not_count_and_what_was_given_back_does():
    assert Residence.parse(ROLLUP, "VmHWM:\t9000 kB\nVmRSS:\t9000 kB\n").highest_own == 3600 * 1024
    assert Residence.parse(ROLLUP, "VmHWM:\t9700 kB\nVmRSS:\t9000 kB\n").highest_own == 4300 * 1024
    with pytest.raises(ValueError, match="has ended"):
        Residence.parse(ROLLUP, "State:\tZ (zombie)\n")


def test_what_was_given_back_is_remembered():
    with subprocess.Popen([sys.executable, "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline()
        found = Residence.of(process.pid)
        process.communicate()
    assert found.own <= found.resident <= found.highest
    assert found.highest_own > found.own + (60 << 20)


def test_a_process_that_has_gone():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    with pytest.raises((OSError, ValueError)):
        Residence.of(process.pid)


def test_free_memory_is_some_of_all():
    assert 0 < free_bytes() < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
