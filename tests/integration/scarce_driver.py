"""The driver and the trainer themselves, with ranks that may take only so much memory: `python -m tests.integration.scarce_driver STORAGE RUN`."""

from __future__ import annotations

import os
import re
import resource
import sys
from pathlib import Path

from zerofleet.launch import driver

BYTES = "TEST_RANK_BYTES"
"""Environment variable: what a rank may take beyond what it begins with."""


def train(config, world, cache_path, report, control, fault, snapshots) -> None:
    from zerofleet.trainer import loop

    taken = int(re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (taken + int(os.environ[BYTES]), resource.RLIM_INFINITY))
    loop.train(config, world, cache_path, report, control, fault, snapshots)


if __name__ == "__main__":
    program = driver.Program(f"{__spec__.name}:train", has_check=False, has_export=False)
    sys.exit(driver.drive(sys.argv[1], sys.argv[2], program=program))
