"""Freed memory stays with the process: the second use of it takes no page faults."""

import subprocess
import sys

CODE = """
import resource, sys
import numpy as np
from zerofleet.trainer.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

def faults_of_a_large_array():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(48 << 20, np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults_of_a_large_array()
print(faults_of_a_large_array())
"""


def faults(how: str) -> int:
    return int(subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, check=True, timeout=60).stdout)


def test_memory_that_was_freed_is_not_faulted_in_again():
    assert faults("keep") < 100
    assert faults("default") > 20, "glibc does so by itself now: allocator.py has become needless"
