"""The page cache and the disk, so that every trial begins alike and ends with its data durable."""

from __future__ import annotations

import os
from pathlib import Path

from zerofleet.trainer.storage import fsync_folder

_DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def may_drop_caches() -> bool:
    """Whether this process may empty the page cache: root's right."""
    return os.access(_DROP_CACHES, os.W_OK)


def drop_caches() -> None:
    """Writes back everything that is dirty, on every disk, and empties the page cache. Raises PermissionError unless root."""
    os.sync()
    _DROP_CACHES.write_text("3")


def fsync_tree(folder: Path) -> None:
    """Makes all files below `folder`, and the names in it, durable."""
    for path in folder.rglob("*"):
        if path.is_dir():
            fsync_folder(path)
        else:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    fsync_folder(folder)
    fsync_folder(folder.parent)
