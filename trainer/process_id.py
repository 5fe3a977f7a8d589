"""Which process is meant, beyond doubt. Linux only.

A process's number is given to another one when it has ended, and its birth in Unix seconds moves with the clock: the kernel
counts it in ticks since the host started, and what turns ticks into seconds is moved whenever the clock is set. So a process is
told by its number, its ticks, the host's boot (`/proc/sys/kernel/random/boot_id`) and the namespace that numbers are counted in.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_ZOMBIE = "Z"


@dataclass(frozen=True)
class ProcessStat:
    """What /proc/PID/stat says."""

    state: str
    session: int
    ticks: int
    """Of the kernel's clock, from the host's start to the process's."""

    @property
    def is_zombie(self) -> bool:
        """It has ended, and its parent has not asked for its exit code."""
        return self.state == _ZOMBIE


def read_stat(pid: int) -> ProcessStat | None:
    """None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name stands in brackets and may hold anything, brackets included
    return ProcessStat(state=fields[0], session=int(fields[3]), ticks=int(fields[19]))


def lives(pid: int) -> bool:
    """Whether a process has this number now, whichever it is."""
    stat = read_stat(pid)
    return stat is not None and not stat.is_zombie


@dataclass(frozen=True)
class ProcessId:
    """A process that cannot be mistaken for another."""

    boot: str
    namespace: int
    """Inode of its pid namespace: containers count their own processes."""
    pid: int
    ticks: int

    @staticmethod
    def of(pid: int) -> ProcessId:
        """Raises ProcessLookupError."""
        stat = read_stat(pid)
        if stat is None:
            raise ProcessLookupError(f"no process {pid}")
        return ProcessId(_boot(), _namespace(), pid, stat.ticks)

    @staticmethod
    def own() -> ProcessId:
        """Of this process."""
        return ProcessId.of(os.getpid())

    @staticmethod
    def parse(text: str) -> ProcessId:
        """What `str` made. Raises ValueError."""
        boot, namespace, pid, ticks = text.split("/")
        return ProcessId(boot, int(namespace), int(pid), int(ticks))

    def __str__(self) -> str:
        return f"{self.boot}/{self.namespace}/{self.pid}/{self.ticks}"

    @property
    def is_here(self) -> bool:
        """Whether it belongs to this host as it runs now, and to this process's numbers: else nothing can be seen of it."""
        return (self.boot, self.namespace) == (_boot(), _namespace())

    def is_alive(self) -> bool:
        """Exactly, where it can be seen. Of another boot: False, that is over. Of another container: True, since nobody here can tell."""
        if not self.is_here:
            return self.boot == _boot()
        stat = read_stat(self.pid)
        return stat is not None and stat.ticks == self.ticks and not stat.is_zombie


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _namespace() -> int:
    return Path("/proc/self/ns/pid").stat().st_ino
