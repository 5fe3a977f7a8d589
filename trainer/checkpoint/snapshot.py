"""Snapshots: the fragments of one rank in memory, in plain files of /dev/shm that outlive every process of the run.

Not multiprocessing.shared_memory: its tracker unlinks a segment when a process that had it open is killed. A buffer
file begins with what says where things are and whether they are whole (preamble.py), then come the snapshot's description
as JSON and, page-aligned, byte for byte the rank file that storage would get. So whoever finds the file, after whatever
ended, can load from it or write it out. Knows neither torch nor DeepSpeed.

Who uses a buffer holds a lock on its file (flock), which the kernel gives back when the holder dies: exclusive while
a rank fills it, shared while someone reads it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from zerofleet.trainer.checkpoint.buffers import DESCRIPTION_ROOM_BYTES, MAX_BUFFERS
from zerofleet.trainer.checkpoint.format import DamagedFile, header_of, parse_header
from zerofleet.trainer.checkpoint.fragments import DTYPES, FragmentKey
from zerofleet.trainer.checkpoint.preamble import (
    DESCRIPTION_AT,
    Preamble,
    read_description,
    read_preamble,
)
from zerofleet.trainer.errors import StorageError
from zerofleet.trainer.run_folder import CheckpointId

_NOTHING = (-1, -1)
_LOOK_S = 0.02
_PAGE = 4096
_FILES = "rank-*.snapshot"
_ROOM_TO_KEEP = 3
"""From so many buffers on one can be kept for a reader while two take turns."""
REPLICAS = "replicas"
"""Subfolder with the snapshots of another node's ranks: a buddy's."""


@dataclass(frozen=True)
class SnapshotMeta:
    """What a snapshot says about itself."""

    step: int
    attempt: int
    silo: str
    rank: int
    world_size: int
    token: str
    """The attempt's own mark (AttemptRecord.token): another run of the same name has others."""
    header_bytes: int = 0
    """Length field and header at the start of the payload, as in a rank file; set when it is written."""
    draft: dict[str, Any] | None = None
    """On rank 0: the manifest without digests and rank files (commit.Draft)."""
    events: list[dict[str, Any]] = field(default_factory=list)
    """On rank 0: the newest steps' events, ledger entries included, in case nobody heard them."""

    def brief(self) -> SnapshotMeta:
        """Without what is large."""
        return replace(self, draft=None, events=[])

    @property
    def checkpoint(self) -> CheckpointId:
        return CheckpointId(self.step, self.attempt, self.silo)


class Snapshot:
    """A complete snapshot, open for reading. While it is open no rank overwrites it."""

    def __init__(self, path: Path, meta: SnapshotMeta, view: memoryview, file: int) -> None:
        self.path, self.meta, self.payload, self._file = path, meta, view, file

    def header(self) -> dict[FragmentKey, tuple[int, int]]:
        """Fragments and their byte range in the payload."""
        return parse_header(bytes(self.payload[: self.meta.header_bytes]))

    def read(self, start: int, end: int) -> memoryview:
        """Bytes [start, end) of the payload; valid while the snapshot is open."""
        return self.payload[start:end]

    def fragments(self) -> Iterator[tuple[FragmentKey, npt.NDArray[np.generic]]]:
        """All fragments as arrays over the payload."""
        for key, (start, end) in self.header().items():
            yield key, np.frombuffer(self.payload[start:end], DTYPES[key.dtype])

    def close(self) -> None:
        """Lets the buffer go; arrays that were made of `payload` keep their memory, not its content."""
        _unlock(self._file)


def open_snapshot(path: Path) -> Snapshot | None:
    """None when there is no complete snapshot in the file, a rank is filling it, or it is damaged: `find_snapshots` tells that."""
    try:
        return _open(path)
    except DamagedFile:
        return None


def _open(path: Path) -> Snapshot | None:
    """Raises DamagedFile."""
    with contextlib.ExitStack() as stack:
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DamagedFile(f"it cannot be opened ({error.strerror})") from error
        stack.callback(os.close, file)
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        preamble = read_preamble(file)
        if preamble is None:
            return None
        meta = _meta(read_description(file, preamble))
        mapped = mmap.mmap(file, preamble.offset + preamble.size, prot=mmap.PROT_READ)
        stack.pop_all()
    return Snapshot(path, meta, memoryview(mapped)[preamble.offset :], file)  # the view keeps the mapping alive


def _meta(text: bytes) -> SnapshotMeta:
    """Raises DamagedFile."""
    try:
        return SnapshotMeta(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise DamagedFile(f"its description is none that this version knows ({error})") from error


def _age(file: int) -> tuple[int, int]:
    """Attempt and step of a whole snapshot, without reading its description; else what is older than any."""
    try:
        preamble = read_preamble(file)
    except DamagedFile:
        return _NOTHING
    return (preamble.attempt, preamble.step) if preamble else _NOTHING


@dataclass(frozen=True)
class Filling:
    """A buffer that is being filled: one byte array per fragment."""

    path: Path
    pieces: list[npt.NDArray[np.uint8]]


class BufferSet:
    """The buffers of one rank. Only this rank fills them, one at a time."""

    def __init__(self, folder: Path, rank: int, num_buffers: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._paths = buffer_paths(folder, rank)[:num_buffers]
        self._kept: int | None = None
        """The buffer that is kept, open and locked."""
        self._mapped: dict[int, mmap.mmap] = {}
        """By inode. Kept from snapshot to snapshot: touching a page for the first time costs several times its copy."""

    def reserve(self, num_bytes: int) -> None:
        """Takes the memory of all buffers, for snapshots of so many bytes. Raises StorageError when it is not there."""
        for path in self._paths:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                _reserve(file, num_bytes + DESCRIPTION_ROOM_BYTES)
                self._map(file, num_bytes + DESCRIPTION_ROOM_BYTES)
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
        self, meta: SnapshotMeta, size: int, keep: bool = False, wait_s: float = 0.0
    ) -> Iterator[Filling | None]:
        """As `fill`, for a payload of `size` bytes that is there already, header included: one piece."""
        if keep:
            self._let_go()
        path, file = self._take()
        gives_up_at = time.monotonic() + wait_s
        while path is None and time.monotonic() < gives_up_at:
            time.sleep(_LOOK_S)  # flock knows no timeout, and whoever reads longest may hold the lock for ever
            path, file = self._take()
        if path is None:
            yield None
            return
        try:
            description = json.dumps(vars(meta)).encode()  # not asdict, which copies all of it first
            offset = -(-(DESCRIPTION_AT + len(description)) // _PAGE) * _PAGE
            _reserve(file, offset + size)
            digest = xxhash.xxh3_64_intdigest(description)
            preamble = Preamble(meta.attempt, meta.step, len(description), offset, size, digest)
            preamble.write(file, is_complete=False)
            os.pwrite(file, description, DESCRIPTION_AT)
            yield Filling(path, [np.frombuffer(self._map(file, offset + size), np.uint8, size, offset)])
            preamble.write(file, is_complete=True)
            if keep and len(self._paths) >= _ROOM_TO_KEEP:
                fcntl.flock(file, fcntl.LOCK_SH)
                self._kept = file
        finally:
            if self._kept != file:
                _unlock(file)

    def _map(self, file: int, num_bytes: int) -> mmap.mmap:
        """A mapping of at least the first `num_bytes` of a buffer, its pages touched."""
        status = os.fstat(file)
        mapped = self._mapped.get(status.st_ino)
        if mapped is None or len(mapped) < num_bytes:
            mapped = mmap.mmap(file, status.st_size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
            self._mapped[status.st_ino] = mapped
        return mapped

    def _let_go(self) -> None:
        if self._kept is not None:
            _unlock(self._kept)
            self._kept = None

    def _take(self) -> tuple[Path | None, int]:
        """The buffer to overwrite, locked: an empty or broken one, else the oldest, but never the newest whole one."""
        states = []
        for path in self._paths:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            states.append((_age(file), path, file))
        states.sort()
        may_go = states[:-1] if states[-1][0] > _NOTHING else states
        taken = next((state for state in may_go if _lock(state[2])), None)
        for state in states:
            if state is not taken:
                os.close(state[2])
        return (taken[1], taken[2]) if taken else (None, -1)


def buffer_paths(folder: Path, rank: int) -> list[Path]:
    """Where a rank's buffers lie."""
    return [folder / f"rank-{rank:05d}.{number}.snapshot" for number in range(MAX_BUFFERS)]


def _unlock(file: int) -> None:
    """Gives up the lock, then the file: a mapping has a descriptor of its own, which would hold the lock on."""
    fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)


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


def find_snapshots(
    folder: Path, tell: Callable[[Path, str], None] = lambda path, why: None
) -> list[tuple[Path, SnapshotMeta]]:
    """Every complete snapshot in a folder, those of the node's own ranks before replicas, each by path. A file that is neither
    whole nor empty nor being filled is left out, and `tell` hears why."""
    found = []
    for path in [*sorted(folder.glob(_FILES)), *sorted((folder / REPLICAS).glob(_FILES))]:
        try:
            snapshot = _open(path)
        except DamagedFile as error:
            tell(path, str(error))
            continue
        if snapshot:
            found.append((path, snapshot.meta))
            snapshot.close()
    return found


def snapshot_files(folder: Path) -> list[Path]:
    """Every buffer in a folder, whole or not, replicas included."""
    return [*folder.glob(_FILES), *(folder / REPLICAS).glob(_FILES)]
