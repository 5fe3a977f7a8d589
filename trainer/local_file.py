"""Large files on a local disk: written past the page cache where the system allows it, read straight into their place."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

_DIRECT_BYTES = 1 << 20
"""Smaller pieces are not worth a write that waits for the disk."""
_ALIGNMENT = 4096
"""Of a direct write's offset, length and memory. The kernel refuses (EINVAL) where it wants more."""
_PART_BYTES = 4 << 20
"""Read at a time: what is then done with a part finds it in the processor's cache, and a disk reads it in one go."""


class NewFile:
    """A new file that is written from its beginning to its end.

    Pieces that lie well, as blocks of a snapshot do, are written with O_DIRECT: the disk takes them from where they are.
    Through the page cache they would be copied, and would push out what training reads; and it takes a core's time that
    training has better use for. Everything else goes through the page cache.
    """

    def __init__(self, path: Path) -> None:
        """Raises FileExistsError when it is there."""
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._direct_file: int | None = None
        self._may_go_direct = True
        self._num_bytes = 0

    def write(self, chunk: bytes | memoryview) -> None:
        """Appends."""
        view = memoryview(chunk).cast("B")
        direct = len(view) // _ALIGNMENT * _ALIGNMENT
        if self._may_go_direct and direct >= _DIRECT_BYTES and self._num_bytes % _ALIGNMENT == 0:
            view = view[self._write_direct(view[:direct]) :]
        self._write_all(self._file, view)

    def sync(self) -> None:
        """Makes what was written durable."""
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)
        if self._direct_file is not None:
            os.close(self._direct_file)

    def _write_direct(self, view: memoryview) -> int:
        """Returns the bytes written: none, or not all, where the file system or the memory does not allow it."""
        before = self._num_bytes
        try:
            if self._direct_file is None:
                self._direct_file = os.open(self._path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
            self._write_all(self._direct_file, view)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._may_go_direct = False
        return self._num_bytes - before

    def _write_all(self, file: int, view: memoryview) -> None:
        while len(view):
            count = os.pwrite(file, view, self._num_bytes)
            self._num_bytes += count
            view = view[count:]


def read_pieces(path: Path, start: int, pieces: Sequence[memoryview]) -> Iterator[memoryview]:
    """Fills `pieces`, one after the other, with the file's bytes from `start` on. Yields each part as soon as it is filled;
    nothing more where the file ends. Raises FileNotFoundError."""
    with contextlib.ExitStack() as stack:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, file)
        for piece in pieces:
            done = 0
            while done < len(piece):
                part = piece[done : done + _PART_BYTES]
                count = os.preadv(file, [part], start)
                if count == 0:
                    return
                yield part[:count]
                done, start = done + count, start + count
