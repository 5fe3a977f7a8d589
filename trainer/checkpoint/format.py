"""The checkpoint format, version 1. Rank files are safetensors; `manifest.json`, written last, is their table of contents.

A rank file: 8 bytes header length (little endian), a JSON header, the data. The header maps `kind/start/name` to dtype,
shape [length] and data_offsets; so the header *is* the fragment table. Every 16 MiB block of the whole file has an
xxh3-128 hash in the manifest, so any byte range can be verified as it is read. docs/checkpoint-format.md has a reader
of 50 lines without zerofleet.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from zerofleet.trainer.checkpoint.fragments import DTYPES, FragmentKey, Tensor
from zerofleet.trainer.run_folder import CheckpointId
from zerofleet.trainer.storage import Storage

FORMAT_VERSION = 1
BLOCK_BYTES = 16 * 1024 * 1024
_ALIGNMENT = 64
FIRST_PROBE_TOKENS = 64
"""Of the probe, where a manifest does not say it: before 0.5."""
READING_THREADS = 2
"""Per rank: ranges that are read and verified at a time. One waits for the disk while the other hashes; more only break up what
the disk would read in one go."""


class DamagedFile(Exception):
    """A file of a checkpoint does not hold what the manifest says."""


@dataclass(frozen=True)
class RankFile:
    """One rank's file as the manifest lists it. `header_digest` covers the length field and the header."""

    path: str
    """Relative to the checkpoint's folder."""
    num_bytes: int
    header_bytes: int
    header_digest: str
    blocks: list[str]
    """xxh3-128 of every 16 MiB block, in order; the last may be short."""


@dataclass(frozen=True)
class Scalars:
    """State that is not a tensor. One value per run: it is the same on every rank."""

    optimizer_steps: list[int]
    """AdamW's step per parameter group (bias correction); in fp16 below the number of steps when some were skipped."""
    loss_scaler: dict[str, float] = field(default_factory=dict)
    """fp16 only: scale, iteration, last_overflow_iteration, hysteresis."""
    engine: dict[str, int] = field(default_factory=dict)
    """DeepSpeed's counters: global_steps, skipped_steps. Micro-steps follow from the world size."""


@dataclass(frozen=True)
class Manifest:
    """The table of contents, written last: a checkpoint without it does not exist."""

    step: int
    """Optimizer steps that the state contains."""
    attempt: int
    silo: str
    world_size: int
    zero_stage: int
    precision: str
    position: int
    """Next sample position: step x global batch size, and the quarantined ones before it."""
    quarantine: list[list[int]]
    """Half-open position ranges that are never fed."""
    scalars: Scalars
    tensors: dict[str, Tensor]
    """Canonical name to shape, kinds and aliases. One entry per parameter, not per fragment."""
    digests: dict[str, str]
    """`kind/name` to the additive digest, 16 hex digits."""
    rank_files: list[RankFile]
    fingerprints: dict[str, str]
    """data, tokenizer, model (xxh3-128 of the resolved model config) and job (seed and global batch): what the state belongs to."""
    versions: dict[str, str]
    created_at: float
    recent_losses: list[float] = field(default_factory=list)
    """Losses of the newest steps, oldest first: what the next one is compared with (spikes)."""
    probe_loss: float | None = None
    """Mean loss per token of the probe (trainer/probe.py) with these weights, nats; None where none was computed."""
    probe_tokens: int = FIRST_PROBE_TOKENS
    """How many tokens it is of."""
    format_version: int = FORMAT_VERSION

    @property
    def num_bytes(self) -> int:
        """Of all rank files together."""
        return sum(file.num_bytes for file in self.rank_files)

    def to_bytes(self) -> bytes:
        """JSON with the hash of everything else under `hash`."""
        parts = {
            "scalars": vars(self.scalars),
            "tensors": {name: vars(tensor) for name, tensor in self.tensors.items()},
            "rank_files": [vars(file) for file in self.rank_files],
        }
        return _sealed({**vars(self), **parts})

    @staticmethod
    def from_bytes(data: bytes) -> Manifest:
        """Raises DamagedFile when it is cut short, changed, or of a format that this version does not know."""
        try:
            body = json.loads(data)
            del body["hash"]
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedFile(f"manifest.json is not whole ({error})") from error
        if _sealed(body) != data:
            raise DamagedFile("manifest.json does not match its own hash")
        if body["format_version"] != FORMAT_VERSION:
            raise DamagedFile(f"manifest.json has format {body['format_version']}, this version reads {FORMAT_VERSION}")
        tensors = tensors_of(body.pop("tensors"))
        rank_files = [RankFile(**entry) for entry in body.pop("rank_files")]
        return Manifest(**{**body, "tensors": tensors, "rank_files": rank_files, "scalars": Scalars(**body["scalars"])})


def tensors_of(fields: dict[str, dict[str, Any]]) -> dict[str, Tensor]:
    """Tensors by name, as JSON holds them."""
    return {
        name: Tensor(tuple(entry["shape"]), entry["kinds"], tuple(entry["aliases"])) for name, entry in fields.items()
    }


def _sealed(body: dict[str, Any]) -> bytes:
    """The one spelling of a manifest: JSON with sorted keys, and under `hash` the xxh3-128 of everything else."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return json.dumps({**body, "hash": xxhash.xxh3_128_hexdigest(text.encode())}, sort_keys=True, indent=1).encode()


# -- writing ------------------------------------------------------------------------------------------------------------
def header_of(keys: Sequence[FragmentKey]) -> bytes:
    """Length field and header of a rank file that holds these fragments in this order."""
    table: dict[str, Any] = {"__metadata__": {"format": f"zerofleet-{FORMAT_VERSION}"}}
    offset = 0
    for key in keys:
        table[key.label()] = {
            "dtype": key.dtype,
            "shape": [key.length],
            "data_offsets": [offset, offset + key.num_bytes],
        }
        offset += key.num_bytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


class BlockHasher:
    """Hashes a stream in 16 MiB blocks."""

    def __init__(self) -> None:
        self.blocks: list[str] = []
        self.num_bytes = 0
        self._current = xxhash.xxh3_128()
        self._room = BLOCK_BYTES

    def update(self, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        self.num_bytes += len(view)
        while len(view):
            piece = view[: self._room]
            self._current.update(piece)
            self._room -= len(piece)
            view = view[len(piece) :]
            if not self._room:
                self._close_block()

    def _close_block(self) -> None:
        self.blocks.append(self._current.hexdigest())
        self._current = xxhash.xxh3_128()
        self._room = BLOCK_BYTES

    def finish(self) -> list[str]:
        if self._room < BLOCK_BYTES:
            self._close_block()
        return self.blocks


def write_rank_file(
    storage: Storage,
    checkpoint: CheckpointId,
    rank: int,
    world_size: int,
    fragments: Sequence[tuple[FragmentKey, npt.NDArray[np.generic]]],
    alive: Callable[[], None] = lambda: None,
) -> RankFile:
    """Writes and fsyncs one rank's fragments, hashing on the way. Arrays are 1-D, contiguous, of the key's numpy dtype.

    `alive` is called between fragments: a large save is no hang.
    """
    path = checkpoint.rank_file(rank, world_size)
    header = header_of([key for key, _ in fragments])
    hasher = BlockHasher()

    def chunks() -> Iterator[bytes | memoryview]:
        hasher.update(header)
        yield header
        for key, values in fragments:
            assert values.nbytes == key.num_bytes, (key, values.dtype, values.shape)
            view = np.ascontiguousarray(values).view(np.uint8).data
            hasher.update(view)
            alive()
            yield view

    storage.write_stream(path, chunks())
    return RankFile(
        path=path.rpartition("/")[2],
        num_bytes=hasher.num_bytes,
        header_bytes=len(header),
        header_digest=xxhash.xxh3_128_hexdigest(header),
        blocks=hasher.finish(),
    )


def blocks_of(payload: memoryview) -> list[memoryview]:
    """What is hashed at a time."""
    return [payload[start : start + BLOCK_BYTES] for start in range(0, len(payload), BLOCK_BYTES)]


def digest_of_blocks(hashes: Sequence[str]) -> str:
    """One hash for all, from the hashes that a rank file's blocks have anyway."""
    return xxhash.xxh3_128_hexdigest("".join(hashes).encode())


def write_payload(storage: Storage, checkpoint: CheckpointId, rank: int, world_size: int, payload: memoryview) -> None:
    """Writes and fsyncs the bytes of a rank file as a snapshot holds them."""
    storage.write_stream(checkpoint.rank_file(rank, world_size), blocks_of(payload))


def describe_payload(
    checkpoint: CheckpointId, rank: int, world_size: int, payload: memoryview, header_bytes: int, hashes: list[str]
) -> RankFile:
    """The entry of a rank file with this payload, whose blocks have these hashes."""
    return RankFile(
        path=checkpoint.rank_file(rank, world_size).rpartition("/")[2],
        num_bytes=len(payload),
        header_bytes=header_bytes,
        header_digest=xxhash.xxh3_128_hexdigest(payload[:header_bytes]),
        blocks=hashes,
    )


@functools.lru_cache(64)  # a rank's header is the same in every snapshot
def parse_header(header: bytes) -> Mapping[FragmentKey, tuple[int, int]]:
    """Fragments and their absolute byte range in the rank file that begins with `header` (length field included). Raises
    DamagedFile."""
    found = {}
    try:
        table = json.loads(header[8:])
        table.pop("__metadata__")
        for label, entry in table.items():
            start, end = (offset + len(header) for offset in entry["data_offsets"])
            found[FragmentKey.parse(label, entry["shape"][0], entry["dtype"])] = (start, end)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DamagedFile(f"its table of fragments is none ({error})") from error
    return MappingProxyType(found)


# -- reading ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Wanted:
    """Elements from `start` on of a tensor, and the array that is to hold them."""

    name: str
    kind: str
    start: int
    target: npt.NDArray[np.generic]


@dataclass(frozen=True)
class Piece:
    """Bytes [start, start + len(target)) of one rank's file, and the memory that is to hold them."""

    start: int
    target: memoryview

    @property
    def end(self) -> int:
        return self.start + len(self.target)

    def within(self, start: int, end: int) -> Piece:
        """What lies in [start, end) of it."""
        first, last = max(start, self.start), min(end, self.end)
        return Piece(first, self.target[first - self.start : last - self.start])


Header = Mapping[FragmentKey, tuple[int, int]]
"""A rank file's fragments and where they lie: [start, end) in bytes."""


class RankFileReader(Protocol):
    """Byte ranges of one rank's file, wherever it lies. Both raise DamagedFile."""

    def header(self) -> Header: ...
    def read(self, start: int, end: int) -> bytes | memoryview: ...


class FragmentTable:
    """Any run of elements of any tensor, wherever the ranks that wrote it had put it."""

    def __init__(self, tensors: dict[str, Tensor], headers: Iterable[tuple[RankFileReader, Header]]) -> None:
        self._tensors = tensors
        self._where: dict[tuple[str, str], list[tuple[FragmentKey, RankFileReader, int]]] = {}
        for reader, header in headers:
            for key, (start, _) in header.items():
                self._where.setdefault((key.kind, key.name), []).append((key, reader, start))
        for found in self._where.values():
            found.sort(key=lambda entry: entry[0].start)

    def read(self, name: str, kind: str, start: int, length: int) -> npt.NDArray[np.generic]:
        """Elements [start, start + length) as a 1-D array. Raises DamagedFile when the ranks' fragments leave a gap."""
        out = np.empty(length, DTYPES[self._tensors[name].kinds[kind]])
        for reader, piece in self._pieces(Wanted(name, kind, start, out)):
            piece.target[:] = reader.read(piece.start, piece.end)
        return out

    def read_tensor(self, name: str, kind: str) -> npt.NDArray[np.generic]:
        """A whole logical tensor in its shape."""
        tensor = self._tensors[name]
        return self.read(name, kind, 0, tensor.num_elements).reshape(tensor.shape)

    def fill(self, wanted: Sequence[Wanted], alive: Callable[[], None] = lambda: None) -> None:
        """Reads all that is wanted straight into place, several ranges at a time; nothing may be wanted twice. Raises
        DamagedFile, and then the targets hold anything. `alive` is called on the way."""
        pieces: dict[RankFileReader, list[Piece]] = {}
        for each in wanted:
            for reader, piece in self._pieces(each):
                pieces.setdefault(reader, []).append(piece)
        tasks = [task for reader, its in pieces.items() for task in self._tasks(reader, its)]
        with ThreadPoolExecutor(READING_THREADS, "reading") as pool:
            futures = [pool.submit(task) for task in tasks]
            try:
                for future in futures:
                    future.result()
                    alive()
            finally:
                pool.shutdown(cancel_futures=True)

    def _tasks(self, reader: RankFileReader, pieces: Sequence[Piece]) -> Iterator[Callable[[], None]]:
        """What fills the pieces, cut so that threads may share the work; a reader is asked by one at a time."""
        lock = threading.Lock()
        for piece in pieces:
            for start in range(piece.start, piece.end, BLOCK_BYTES):
                yield functools.partial(_copy, lock, reader, piece.within(start, start + BLOCK_BYTES))

    def _pieces(self, wanted: Wanted) -> Iterator[tuple[RankFileReader, Piece]]:
        """Where it lies. Raises DamagedFile where it lies nowhere."""
        name, kind = wanted.name, wanted.kind
        itemsize = DTYPES[self._tensors[name].kinds[kind]].itemsize
        assert wanted.target.itemsize == itemsize, (name, kind, wanted.target.dtype)
        target = wanted.target.view(np.uint8).data
        first, position, end = wanted.start, wanted.start, wanted.start + len(wanted.target)
        for key, reader, offset in self._where.get((kind, name), []):
            if key.end <= position or key.start >= end:
                continue
            if key.start > position:
                break
            until = min(key.end, end)
            part = target[(position - first) * itemsize : (until - first) * itemsize]
            yield reader, Piece(offset + (position - key.start) * itemsize, part)
            position = until
        if position != end:
            raise DamagedFile(f"no rank file holds elements {position} to {end} of {kind}/{name}")


def _copy(lock: threading.Lock, reader: RankFileReader, piece: Piece) -> None:
    with lock:
        source = reader.read(piece.start, piece.end)
    np.copyto(np.frombuffer(piece.target, np.uint8), np.frombuffer(source, np.uint8))  # without the interpreter's lock
