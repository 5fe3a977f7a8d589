"""Files of the local cache, written whole: under a temporary name, made durable, then renamed.

The cache is a local folder under one lock, so renaming is safe here; run folders never rename.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from zerofleet.trainer.storage import fsync_folder, storage_errors


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A new file that appears at `path` when the block ends well, and not at all otherwise. StorageError when it cannot be written."""
    temporary = path.with_name(path.name + ".tmp")
    with storage_errors("writing", str(path), setting="data.cache"):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            publish(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)  # a full disk gets its space back
            raise


def publish(temporary: Path, path: Path) -> None:
    """Renames a file or folder into place, durably."""
    temporary.rename(path)
    fsync_folder(path.parent)
