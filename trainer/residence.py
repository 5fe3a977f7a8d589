"""What a process holds of the memory, by the kernel's own count (proc(5))."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Residence:
    """Bytes of one process."""

    own: int
    """Resident pages that no other process has: a rank shares its imports with the process that it was forked from. Snapshots in /dev/shm apart."""
    resident: int
    highest: int
    """The most that was ever resident (VmHWM)."""

    @staticmethod
    def of(pid: int | str) -> Residence:
        """OSError or ValueError when the process has gone."""
        folder = Path("/proc") / str(pid)
        return Residence.parse((folder / "smaps_rollup").read_text(), (folder / "status").read_text())

    @staticmethod
    def parse(rollup: str, status: str) -> Residence:
        """By the texts of smaps_rollup and status. Raises ValueError."""
        kib = {name: int(rest.split()[0]) for name, _, rest in (row.partition(":") for row in rollup.splitlines()[1:])}
        own = sum(size for name, size in kib.items() if name.startswith("Private_")) - kib.get("Pss_Shmem", 0)
        rows = dict(row.split(":", 1) for row in status.splitlines())
        try:
            resident, highest = (int(rows[name].split()[0]) for name in ("VmRSS", "VmHWM"))
        except KeyError as error:
            raise ValueError("a process that has ended has no memory any more") from error
        return Residence(max(0, own) * 1024, resident * 1024, highest * 1024)

    @property
    def highest_own(self) -> int:
        """What is shared is shared from the fork on."""
        return self.own + max(0, self.highest - self.resident)


def free_bytes() -> int:
    """Of this machine's memory: what new processes could have without swapping."""
    rows = dict(row.split(":", 1) for row in Path("/proc/meminfo").read_text().splitlines())
    return int(rows["MemAvailable"].split()[0]) * 1024
