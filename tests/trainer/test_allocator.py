"""Freed memory stays with the process, so that the second use of it takes no page faults; or it leaves, and residence follows what is in use."""

import subprocess
import sys

CODE = """
import resource, sys
import numpy as np
from zerofleet.trainer.allocator import give_freed_memory_back, keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
if sys.argv[1] == "give back":
    assert give_freed_memory_back()

def faults_of_a_large_array():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(48 << 20, np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

faults_of_a_large_array()
before = resident()
arrays = [np.ones(1 << 20, np.uint8) for _ in range(64)]
last = np.ones(1 << 20, np.uint8)  # above all of them, where they lie in the heap
del arrays
print(faults_of_a_large_array(), (resident() - before) >> 20)
"""


def faults_and_kept_mib(how: str) -> tuple[int, int]:
    done = subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, check=True, timeout=60)
    faults, kept_mib = map(int, done.stdout.split())
    return faults, kept_mib


def test_memory_that_was_freed_is_not_faulted_in_again():
    assert faults_and_kept_mib("keep")[0] < 100
    assert faults_and_kept_mib("default")[0] > 20, "glibc does so by itself now: allocator.py has become needless"


def test_memory_that_is_given_back_leaves_from_below_what_is_in_use_too():
    assert faults_and_kept_mib("give back")[1] < 4
    assert faults_and_kept_mib("keep")[1] > 8
