"""Mappings of snapshot buffers that are kept from snapshot to snapshot: touching a page for the first time costs several times its copy."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class _Kept:
    path: Path
    device: int
    inode: int
    mapped: mmap.mmap

    def is_of(self, path: Path, status: os.stat_result) -> bool:
        """Nothing else can have the inode while it is mapped."""
        return (self.path, self.device, self.inode) == (path, status.st_dev, status.st_ino)

    def is_there(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return self.is_of(self.path, self.path.stat())
        return False


class Mappings:
    """Of one process, for any of its threads. A file that has lost its name is let go when the next one is asked for."""

    def __init__(self, most_bytes: int | None = None, prot: int = mmap.PROT_READ, flags: int = mmap.MAP_SHARED) -> None:
        """Of more than `most_bytes` in all, those that were asked for longest ago are let go. `prot` and `flags` as in mmap(2)."""
        self._most_bytes, self._prot, self._flags = most_bytes, prot, flags
        self._kept: list[_Kept] = []
        """Those that were asked for last are the last."""
        self._lock = threading.Lock()

    def get(self, path: Path, file: int, num_bytes: int) -> mmap.mmap:
        """A mapping of at least the first `num_bytes` of the file `path` that is open as `file`: buffers only grow."""
        status = os.fstat(file)
        with self._lock:
            found = next((kept for kept in self._kept if kept.is_of(path, status)), None)
            self._kept = [kept for kept in self._kept if kept is not found and kept.is_there()]
            if found is None or len(found.mapped) < num_bytes:
                mapped = mmap.mmap(file, status.st_size, flags=self._flags, prot=self._prot)
                found = _Kept(path, status.st_dev, status.st_ino, mapped)
            self._kept.append(found)
            while self._most_bytes is not None and sum(len(kept.mapped) for kept in self._kept) > self._most_bytes:
                del self._kept[0]
            return found.mapped

    def clear(self) -> None:
        """Lets all go. What is in use stays for as long."""
        with self._lock:
            self._kept.clear()
