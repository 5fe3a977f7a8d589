"""What a process holds of the memory, by the kernel's own count (proc(5))."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Residence:
    """Bytes of one process."""

    own: int
    """Resident pages that no other process has: a rank shares its imports with the process that it was forked from."""
    resident: int
    highest: int
    """The most that was ever resident (VmHWM)."""

    @staticmethod
    def of(pid: int | str) -> Residence:
        """OSError or ValueError when the process has gone."""
        folder = Path("/proc") / str(pid)
        rollup = (folder / "smaps_rollup").read_text().splitlines()
        own = sum(int(row.split()[1]) for row in rollup if row.startswith("Private_"))
        status = dict(row.split(":", 1) for row in (folder / "status").read_text().splitlines())
        try:
            resident, highest = (int(status[name].split()[0]) for name in ("VmRSS", "VmHWM"))
        except KeyError as error:
            raise ValueError(f"process {pid} has no memory any more") from error
        return Residence(own * 1024, resident * 1024, highest * 1024)

    @property
    def highest_own(self) -> int:
        """What is shared is shared from the fork on."""
        return self.highest - (self.resident - self.own)


def free_bytes() -> int:
    """Of this machine's memory: what new processes could have without swapping."""
    rows = dict(row.split(":", 1) for row in Path("/proc/meminfo").read_text().splitlines())
    return int(rows["MemAvailable"].split()[0]) * 1024
