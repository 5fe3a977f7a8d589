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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from zerofleet.trainer.checkpoint.buffers import MAX_BUFFERS
from zerofleet.trainer.checkpoint.format import (
    DamagedFile,
    blocks_of,
    digest_of_blocks,
    parse_header,
)
from zerofleet.trainer.checkpoint.fragments import DTYPES, FragmentKey
from zerofleet.trainer.checkpoint.mappings import Mappings
from zerofleet.trainer.checkpoint.preamble import (
    Preamble,
    read_description,
    read_preamble,
)
from zerofleet.trainer.checkpoint.scan import scan
from zerofleet.trainer.run_folder import CheckpointId

_FILES = "rank-*.snapshot"
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
    start_step: int = 0
    """What its attempt began from: later steps of earlier attempts are fenced off."""
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

    def __init__(self, path: Path, meta: SnapshotMeta, view: memoryview, file: int, preamble: Preamble) -> None:
        self.path, self.meta, self.payload, self._file, self._preamble = path, meta, view, file, preamble

    def header(self) -> Mapping[FragmentKey, tuple[int, int]]:
        """Fragments and their byte range in the payload. Raises DamagedFile."""
        return parse_header(bytes(self.payload[: self.meta.header_bytes]))

    @property
    def digest(self) -> str | None:
        """Of the payload, as it was soon after it was taken; None while that is not known."""
        return self._preamble.read_digest(self._file)

    def hash(self) -> list[str]:
        """Of every block of the payload as it is now, as in a rank file."""
        return [xxhash.xxh3_128_hexdigest(block) for block in blocks_of(self.payload)]

    def scan(self) -> tuple[list[str], dict[str, int]]:
        """`hash`, and what the fragments add to the digests (commit.partial_digests), in one pass over the payload. Raises DamagedFile."""
        try:
            return scan(self.payload, self.header())
        except (KeyError, ValueError, TypeError, OverflowError) as error:  # a header whose JSON is whole and wrong
            raise DamagedFile(f"{self.path} has a header that fits none of its fragments ({error})") from error

    def check(self, hashes: Sequence[str]) -> str:
        """Whether the payload with these hashes is the one that was taken; from now on that is known, if it was not. Returns the
        digest. Raises DamagedFile."""
        digest = digest_of_blocks(hashes)
        if self.digest is None:
            _add_digest(self.path, self._preamble, digest)
        if self.digest not in (None, digest):
            raise DamagedFile(
                f"{self.path} does not hold what rank {self.meta.rank} put there in step {self.meta.step}"
            )
        return digest

    def read(self, start: int, end: int) -> memoryview:
        """Bytes [start, end) of the payload; valid while the snapshot is open."""
        return self.payload[start:end]

    def fragments(self) -> Iterator[tuple[FragmentKey, npt.NDArray[np.generic]]]:
        """All fragments as arrays over the payload."""
        for key, (start, end) in self.header().items():
            yield key, np.frombuffer(self.payload[start:end], DTYPES[key.dtype])

    def close(self) -> None:
        """Lets the buffer go; arrays that were made of `payload` keep their memory, not its content."""
        unlock(self._file)


def open_snapshot(path: Path, mappings: Mappings | None = None) -> Snapshot | None:
    """None when there is no complete snapshot in the file, a rank is filling it, or it is damaged: `find_snapshots` tells that. With
    `mappings` the file's is kept: for who reads the same buffers again and again."""
    try:
        return _open(path, mappings)
    except DamagedFile:
        return None


def _open(path: Path, mappings: Mappings | None = None) -> Snapshot | None:
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
        payload = _payload(path, file, preamble, mappings)
        stack.pop_all()
    return Snapshot(path, meta, payload, file, preamble)


def _payload(path: Path, file: int, preamble: Preamble, mappings: Mappings | None) -> memoryview:
    """The view keeps the mapping alive."""
    end = preamble.offset + preamble.size
    mapped = mappings.get(path, file, end) if mappings else mmap.mmap(file, end, prot=mmap.PROT_READ)
    return memoryview(mapped)[preamble.offset : end]


def hash_snapshot(path: Path, gives_up: Callable[[], bool] = lambda: False, mappings: Mappings | None = None) -> None:
    """Notes the digest of the snapshot that is there, if nobody has. Without pinning it, so that no rank ever lacks a buffer
    for this: it ends without one when a rank begins to overwrite it, or as soon as `gives_up` says so."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # gone, or none of ours
        return
    with contextlib.ExitStack() as stack, contextlib.suppress(DamagedFile):  # `find_snapshots` tells that
        stack.callback(os.close, file)
        preamble, hashes = read_preamble(file), []
        if preamble is None or preamble.read_digest(file) is not None:
            return
        for block in blocks_of(_payload(path, file, preamble, mappings)):
            hashes.append(xxhash.xxh3_128_hexdigest(block))
            if gives_up() or read_preamble(file) != preamble:
                return
        preamble.write_digest(file, digest_of_blocks(hashes))


def _add_digest(path: Path, preamble: Preamble, digest: str) -> None:
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        preamble.write_digest(file, digest)
    finally:
        os.close(file)


def _meta(text: bytes) -> SnapshotMeta:
    """Raises DamagedFile."""
    try:
        return SnapshotMeta(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise DamagedFile(f"its description is none that this version knows ({error})") from error


def buffer_paths(folder: Path, rank: int) -> list[Path]:
    """Where a rank's buffers lie."""
    return [folder / f"rank-{rank:05d}.{number}.snapshot" for number in range(MAX_BUFFERS)]


def unlock(file: int) -> None:
    """Gives up the lock, then the file: a mapping has a descriptor of its own, which would hold the lock on."""
    fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)


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
