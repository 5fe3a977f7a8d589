"""What the kernel tells about a host and its processes. Linux; an answer that is not to be had is none, not an error."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import psutil

_CGROUP_EVENTS = Path("/sys/fs/cgroup/memory.events")
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_TOOL_TIMEOUT_S = 20.0


def oom_kills() -> int:
    """How many processes the kernel has killed for memory so far, on the host or in this container."""
    return max(_counter(Path("/proc/vmstat"), "oom_kill"), _counter(_CGROUP_EVENTS, "oom_kill"))


def _counter(path: Path, name: str) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return 0


def memory_bytes() -> int:
    """Memory that this container may use, else the host's."""
    total = psutil.virtual_memory().total
    with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
        return min(total, int(_CGROUP_LIMIT.read_text()))
    return total


def process_state(pid: int) -> str:
    """The kernel's letter: R running, S sleeping, D waiting for a disk or device, T stopped, Z ended; empty when gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def interface_of(address: str) -> str:
    """The network device that holds an address; empty when none does."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in addresses):
            return name
    return ""


def num_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def gpu_memory_bytes() -> int:
    """Of the GPU that has least of those that this process may use, by its driver's own tool; 0 where that is not there or says nothing. Where GPUs
    differ, CUDA numbers them as the tool does with CUDA_DEVICE_ORDER=PCI_BUS_ID only."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    command += [f"--id={chosen}"] if chosen else []
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_TIMEOUT_S, check=True).stdout
        return min((int(line) for line in told.split()), default=0) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError):
        return 0


def visible_gpus() -> int:
    """GPUs that this process may use, without loading CUDA."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([index for index in chosen.split(",") if index.strip() not in ("", "-1")])
    return len([path for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit()])
