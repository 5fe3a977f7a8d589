"""Somebody on this host whose memory is too small: he reads a file again and again that does not fit beside himself, and waits for the disk."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

LIMIT_BYTES, FILE_BYTES = 64 << 20, 80 << 20
"""A file a little larger than what he may have: what was just dropped is wanted next, which is what the kernel calls thrashing."""
_PRESSURE = Path("/proc/pressure/memory")


def _limited_group() -> tuple[Path, str]:
    """Where a control group of ours could be, and what its limit of memory is called there. OSError where there is none."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    for _, controllers, path in lines:
        for root, name, is_it in (
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", controllers == "memory"),
            ("/sys/fs/cgroup", "memory.max", controllers == ""),
        ):
            place = Path(f"{root}{path}")
            if is_it and (place / "cgroup.procs").exists() and (name in os.listdir(place) or root.endswith("memory")):
                return place / f"zerofleet-test-{os.getpid()}", name
    raise OSError("there is no control group of memory")


def why_not() -> str:
    """Why nobody can be limited here; empty: somebody can."""
    if not _PRESSURE.exists():
        return "the kernel does not count the time for which memory is waited for (/proc/pressure/memory)"
    try:
        group, limit = _limited_group()
        group.mkdir()
    except OSError as error:
        return f"a control group cannot be made: {error}"
    try:
        (group / limit).write_text(str(LIMIT_BYTES))
    except OSError as error:
        return f"a control group cannot be limited: {error}"
    finally:
        group.rmdir()
    return ""


@contextlib.contextmanager
def paging() -> Iterator[None]:
    """While it lasts he does so."""
    group, limit = _limited_group()
    group.mkdir()
    try:
        (group / limit).write_text(str(LIMIT_BYTES))
        with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
            for _ in range(FILE_BYTES >> 20):
                file.write(os.urandom(1 << 20))
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # its pages are to be his, not ours
            command = [sys.executable, __file__, file.name, str(group / "cgroup.procs")]
            reader = subprocess.Popen(command, stdout=subprocess.PIPE)
            try:
                assert reader.stdout is not None and reader.stdout.readline() == b"reading\n"
                yield
            finally:
                reader.send_signal(signal.SIGKILL)
                reader.wait()
    finally:
        group.rmdir()


def _read(path: str, processes: str) -> None:
    parent = os.getppid()
    Path(processes).write_text(str(os.getpid()))
    with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        print("reading", flush=True)
        while os.getppid() == parent:  # who was killed could not end this
            pages[random.randrange(len(pages))]


if __name__ == "__main__":
    _read(*sys.argv[1:])
