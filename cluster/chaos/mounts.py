"""Storage that fills up or goes away for a while, made for real with mounts over a run folder. Needs root; local storage only.

A full disk: the run folder is a file system in memory from the start, which is made as small as what it holds. An outage:
the folder is mounted read-only over itself, so that files that are open go on growing and nothing new can be made.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Protocol

from zerofleet.trainer.errors import UserError, ZerofleetError
from zerofleet.trainer.run_folder import RunFolder

_TRIES = 50
ROOM_BYTES = 4 * 2**30
"""What the file system in memory may hold while it is not full; it takes only what is written."""


class MountError(ZerofleetError):
    """The kernel refused a mount."""


def check_mounts(run: RunFolder, kind: str) -> None:
    """Raises UserError where a fault of this kind cannot be made."""
    if not run.storage.is_local:
        raise UserError(f"{kind} mounts something over the run folder, and {run.storage.url} is not on a local disk")
    if os.geteuid() != 0:
        raise UserError(f"{kind} needs root: it mounts something over the run folder. Leave it out of the plan")


class RoomyFolder:
    """A run folder in memory whose room can be taken away. What it holds is put on the disk by `close`."""

    def __init__(self, folder: Path) -> None:
        """The folder must not exist. Raises MountError."""
        self._folder = folder
        folder.mkdir(parents=True)
        _mount("-t", "tmpfs", "-o", f"size={ROOM_BYTES}", "tmpfs", str(folder))

    def fill(self) -> None:
        """From now on there is no room. Raises MountError."""
        for tries_left in reversed(range(_TRIES)):
            status = os.statvfs(self._folder)
            size = (status.f_blocks - status.f_bfree) * status.f_frsize
            try:
                return _mount("-o", f"remount,size={size}", str(self._folder))
            except MountError:  # the kernel makes it no smaller than what it holds, and the run has just written more
                if not tries_left:
                    raise

    def empty(self) -> None:
        """There is room again."""
        _mount("-o", f"remount,size={ROOM_BYTES}", str(self._folder))

    def close(self) -> None:
        """To be called when nobody writes there any more."""
        kept = self._folder.with_name(f".{self._folder.name}-kept")
        shutil.copytree(self._folder, kept, symlinks=True)
        unmount(self._folder)
        self._folder.rmdir()
        kept.rename(self._folder)


class Outage(Protocol):
    """Storage that goes away and comes back."""

    def begin(self) -> None:
        """From now on it takes nothing."""

    def end(self) -> None:
        """It is as it was before."""


class MountedOutage:
    """Of a folder, which becomes read-only. Both raise MountError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self) -> None:
        _mount("--bind", str(self._folder), str(self._folder))
        _mount("-o", "remount,bind,ro", str(self._folder))

    def end(self) -> None:
        unmount(self._folder)


def unmount(folder: Path) -> None:
    """Takes the newest mount away, at once for whoever comes next. Raises MountError."""
    _call("umount", "-l", str(folder))


def _mount(*arguments: str) -> None:
    _call("mount", *arguments)


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MountError(f"{' '.join(command)} failed: {done.stderr.strip()}")
