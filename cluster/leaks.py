"""What dead drivers and ranks have left on this machine: local Rays, snapshots and other files in memory, folders in the temporary directory.
Removes nothing."""

from __future__ import annotations

import contextlib
import os
import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from zerofleet.cluster.config import Check
from zerofleet.cluster.local import Leftover, leftovers
from zerofleet.cluster.snapshot_writer import MEMORY
from zerofleet.trainer.checkpoint.snapshot import find_snapshots

TEMP_PREFIX = "zerofleet-"
"""Of folders for logs, wandb's files and exports (cluster/agent.py, launch/backends/local.py, ...), and of files that ranks share
(trainer/host_collectives.py)."""
LEAST_AGE_S = 3600.0
"""A folder in the temporary directory that changed later is left alone, whoever uses it."""
LEAST_START_S = 60.0
"""What ranks share has a name until all of them have it."""
_MIB = 2**20


def local_leaks(memory: Path = MEMORY) -> Iterator[Check]:
    """A line for each: what it is, what it costs, and the command that removes it."""
    dead = [leftover for leftover in leftovers() if not leftover.owner.is_alive()]
    doomed = set()
    for leftover in dead:
        processes = leftover.processes()
        doomed |= {process.pid for process in processes}
        yield _local_ray(leftover, processes)
    folders, shared = _snapshot_folders(memory), _shared_files(memory)
    temporary = _temporary_folders({leftover.folder for leftover in leftovers()})
    used = users_of([*folders, *shared, *temporary])
    yield from (_snapshots(folder) for folder in folders if not used[folder] - doomed)
    for path in shared:
        with contextlib.suppress(FileNotFoundError):  # its ranks have it now
            if not used[path] - doomed:
                yield _shared(path)
    yield from (_temporary(folder) for folder in temporary if not used[folder] - doomed)


def _local_ray(leftover: Leftover, processes: Sequence[psutil.Process]) -> Check:
    held = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            held += process.memory_full_info().uss
    cost = f"{len(processes)} processes with {held / _MIB:,.0f} MiB of memory, {size_bytes(leftover.folder) / _MIB:,.1f} MiB in {leftover.folder}"
    text = f"of run {leftover.run}, whose driver (process {leftover.owner.pid}) is gone: {cost}. zerofleet doctor"
    return Check("warn", "local Ray", text)


def _snapshot_folders(memory: Path) -> list[Path]:
    """Of this user's runs."""
    root = memory / f"zerofleet-{os.getuid()}"
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def _snapshots(folder: Path) -> Check:
    steps = [meta.step for _, meta in find_snapshots(folder)]
    run, newest = folder.name.rpartition("-")[0], f"up to step {max(steps)}" if steps else "none of them whole"
    cost = f"{size_bytes(folder) / _MIB:,.1f} MiB of memory"
    go_on = f"zerofleet resume {run} goes on from them" if steps else "nothing can go on from them"
    text = f"snapshots of run {run} ({newest}), which no process uses: {cost}; {go_on}. Without that: rm -r {shlex.quote(str(folder))}"
    return Check("warn", "snapshots", text)


def _shared_files(memory: Path) -> list[Path]:
    """This user's, through which ranks would have exchanged gradients: they lose their name as soon as all ranks have them, unless a rank is
    killed before."""
    found = []
    for path in memory.glob(f"{TEMP_PREFIX}*"):
        with contextlib.suppress(OSError):  # it has lost its name
            state = path.stat()
            is_ours = path.is_file() and state.st_uid == os.getuid()
            if is_ours and time.time() - state.st_mtime > LEAST_START_S:
                found.append(path)
    return sorted(found)


def _shared(path: Path) -> Check:
    text = f"{path}, of ranks that were killed while they started: {path.stat().st_blocks * 512 / _MIB:,.1f} MiB of memory. rm {shlex.quote(str(path))}"
    return Check("warn", "shared memory", text)


def _temporary_folders(recorded: set[Path]) -> list[Path]:
    """This user's folders that some part of zerofleet has made and nothing has changed for an hour."""
    found = []
    for root in temporary_roots():
        for path in [*root.glob(f"{TEMP_PREFIX}*"), *(log.parent for log in root.glob("zf-*/head.log"))]:
            with contextlib.suppress(OSError):  # it is gone, or another user's
                state = path.stat()
                is_ours = path.is_dir() and state.st_uid == os.getuid() and path not in recorded
                if is_ours and time.time() - _newest(path) > LEAST_AGE_S:
                    found.append(path)
    return sorted(found)


def temporary_roots() -> set[Path]:
    """Where such folders are made; local Rays, whose paths must be short, below /tmp in any case."""
    return {Path(tempfile.gettempdir()), Path("/tmp")}


def _temporary(folder: Path) -> Check:
    text = f"{folder}, which no process uses: {size_bytes(folder) / _MIB:,.1f} MiB of disk. rm -r {shlex.quote(str(folder))}"
    return Check("warn", "temporary", text)


def _newest(folder: Path) -> float:
    """When anything in it changed last, in Unix seconds."""
    return max(path.lstat().st_mtime for path in [folder, *folder.rglob("*")])


def size_bytes(folder: Path) -> int:
    """What its files take, holes not counted."""
    found = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # removed meanwhile
            found += path.lstat().st_blocks * 512
    return found


def users_of(folders: Sequence[Path]) -> dict[Path, set[int]]:
    """The processes that have a file below each folder open or mapped, or work in it. Another user's cannot be seen, unless by root."""
    used: dict[Path, set[int]] = {folder: set() for folder in folders}
    names = {f"{folder}/": folder for folder in folders}
    for pid in psutil.pids() if folders else []:
        for path in _paths_of(pid):
            for name, folder in names.items():
                if f"{path}/".startswith(name):
                    used[folder].add(pid)
    return used


def _paths_of(pid: int) -> Iterator[str]:
    """Files that a process has open or mapped, and its working directory. Several times, where it has them several times."""
    process = Path(f"/proc/{pid}")
    with contextlib.suppress(OSError):  # it ended, or is another user's
        for link in [process / "cwd", *(process / "fd").iterdir()]:
            with contextlib.suppress(OSError):  # closed meanwhile
                yield str(link.readlink())
    with contextlib.suppress(OSError):
        for line in (process / "maps").read_text(errors="replace").splitlines():
            if "/" in line:
                yield line[line.index("/") :]
