"""The buffers of a rank, as it fills them with snapshots; an agent fills those of its buddy's ranks. snapshot.py reads them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from zerofleet.trainer.checkpoint.buffers import DESCRIPTION_ROOM_BYTES
from zerofleet.trainer.checkpoint.format import DamagedFile, header_of
from zerofleet.trainer.checkpoint.fragments import FragmentKey
from zerofleet.trainer.checkpoint.mappings import Mappings
from zerofleet.trainer.checkpoint.preamble import DESCRIPTION_AT, Preamble, read_preamble
from zerofleet.trainer.checkpoint.snapshot import SnapshotMeta, buffer_paths, unlock
from zerofleet.trainer.errors import StorageError

_NOTHING = (-1, -1)
_LOOK_S = 0.02
_PAGE = 4096
_ROOM_TO_KEEP = 3
"""From so many buffers on one can be kept for a reader while two take turns."""


def writable_mappings(most_bytes: int | None = None) -> Mappings:
    """For buffers that are filled."""
    return Mappings(most_bytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | mmap.MAP_POPULATE)


@dataclass(frozen=True)
class Filling:
    """A buffer that is being filled: one byte array per fragment."""

    path: Path
    pieces: list[npt.NDArray[np.uint8]]


class BufferSet:
    """The buffers of one rank. Only this rank fills them, one at a time."""

    def __init__(self, folder: Path, rank: int, num_buffers: int, mappings: Mappings | None = None) -> None:
        """`mappings`: those of a process with the buffers of many ranks."""
        folder.mkdir(parents=True, exist_ok=True)
        self._paths = buffer_paths(folder, rank)[:num_buffers]
        self._kept: int | None = None
        """The buffer that is kept, open and locked."""
        self._mappings = mappings or writable_mappings()

    def reserve(self, num_bytes: int) -> None:
        """Takes the memory of all buffers, for snapshots of so many bytes. Raises StorageError when it is not there."""
        for path in self._paths:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                _reserve(file, num_bytes + DESCRIPTION_ROOM_BYTES)
                self._mappings.get(path, file, num_bytes + DESCRIPTION_ROOM_BYTES)
            finally:
                os.close(file)

    @contextlib.contextmanager
    def fill(
        self, meta: SnapshotMeta, keys: Sequence[FragmentKey], keep: bool = False, wait_s: float = 0.0
    ) -> Iterator[Filling | None]:
        """Gives a buffer to fill; after the block the snapshot is complete. None when every buffer that may be overwritten is
        being read, for `wait_s` and longer. With `keep` it is not overwritten before the next one that is kept, where two buffers remain to take
        turns: its reader may come late.

        Raises StorageError when the memory file system is full.
        """
        header = header_of(keys)
        size = len(header) + sum(key.num_bytes for key in keys)
        with self.receive(replace(meta, header_bytes=len(header)), size, keep, wait_s) as buffer:
            if buffer is None:
                yield None
                return
            (payload,) = buffer.pieces
            payload[: len(header)] = np.frombuffer(header, np.uint8)
            yield Filling(buffer.path, _cut(payload[len(header) :], keys))

    @contextlib.contextmanager
    def receive(
        self, meta: SnapshotMeta, size: int, keep: bool = False, wait_s: float = 0.0, digest: str = ""
    ) -> Iterator[Filling | None]:
        """As `fill`, for a payload of `size` bytes that is there already, header included: one piece. `digest` is that of the
        payload, where it is known."""
        if keep:
            self._let_go()
        path, file = self._take(meta)
        gives_up_at = time.monotonic() + wait_s
        while path is None and time.monotonic() < gives_up_at:
            time.sleep(_LOOK_S)  # flock knows no timeout, and whoever reads longest may hold the lock for ever
            path, file = self._take(meta)
        if path is None:
            yield None
            return
        try:
            description = json.dumps(vars(meta)).encode()  # not asdict, which copies all of it first
            offset = -(-(DESCRIPTION_AT + len(description)) // _PAGE) * _PAGE
            _reserve(file, offset + size)
            its_hash = xxhash.xxh3_64_intdigest(description)
            preamble = Preamble(meta.attempt, meta.step, len(description), offset, size, its_hash)
            preamble.write(file, is_complete=False)
            os.pwrite(file, description, DESCRIPTION_AT)
            if digest:
                preamble.write_digest(file, digest)
            mapped = self._mappings.get(path, file, offset + size)
            yield Filling(path, [np.frombuffer(mapped, np.uint8, size, offset)])
            preamble.write(file, is_complete=True)
            if keep and len(self._paths) >= _ROOM_TO_KEEP:
                fcntl.flock(file, fcntl.LOCK_SH)
                self._kept = file
        finally:
            if self._kept != file:
                unlock(file)

    def _let_go(self) -> None:
        if self._kept is not None:
            unlock(self._kept)
            self._kept = None

    def _take(self, meta: SnapshotMeta) -> tuple[Path | None, int]:
        """The buffer to overwrite, locked: an empty or broken one, or one of a step that the attempt has fenced off by what it began from; else the
        oldest, but never the newest whole one."""
        states = []
        for path in self._paths:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            states.append((_age(file, meta), path, file))
        states.sort()
        may_go = states[:-1] if states[-1][0] > _NOTHING else states
        taken = next((state for state in may_go if _lock(state[2])), None)
        for state in states:
            if state is not taken:
                os.close(state[2])
        return (taken[1], taken[2]) if taken else (None, -1)


def _age(file: int, meta: SnapshotMeta) -> tuple[int, int]:
    """Attempt and step of a whole snapshot that may be of use, without reading its description; else what is older than any."""
    try:
        preamble = read_preamble(file)
    except DamagedFile:
        return _NOTHING
    if preamble is None or (preamble.attempt < meta.attempt and preamble.step > meta.start_step):
        return _NOTHING
    return preamble.attempt, preamble.step


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _reserve(file: int, num_bytes: int) -> None:
    """Takes the memory now: a write to a mapping that finds the file system full would be a SIGBUS."""
    if os.fstat(file).st_size >= num_bytes:
        return
    try:
        os.posix_fallocate(file, 0, num_bytes)
    except OSError as error:
        raise StorageError(
            f"a snapshot of {num_bytes / 2**20:.0f} MiB does not fit into memory ({error.strerror}): enlarge /dev/shm, or set "
            "checkpoint.snapshot_interval_steps=0"
        ) from error


def _cut(payload: npt.NDArray[np.uint8], keys: Sequence[FragmentKey]) -> list[npt.NDArray[np.uint8]]:
    pieces, offset = [], 0
    for key in keys:
        pieces.append(payload[offset : offset + key.num_bytes])
        offset += key.num_bytes
    return pieces
