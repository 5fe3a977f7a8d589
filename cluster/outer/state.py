"""The outer weights and moments of a run of silos: in memory the newest, in the run folder the newest few rounds.

outer/round-00000003/state.safetensors    weights/NAME and MOMENT/NAME, flattened, fp32
outer/round-00000003/round.json           written last: the round, who was in it, the file's hash

Round 0 holds the initial weights. A round is durable before any silo hears of it, so no silo is ever ahead of what a new driver
finds; a silo that repeats a round gets the very same weights.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from zerofleet.trainer.errors import StorageError
from zerofleet.trainer.storage import Storage

Float32 = NDArray[np.float32]
Arrays = dict[str, Float32]
WEIGHTS = "weights"
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class RoundRecord:
    """What is kept of a round besides its weights."""

    round: int
    tokens: dict[str, int] = field(default_factory=dict)
    """By silo whose delta is in the outer step; of nobody where there was none."""
    is_step: bool = True
    """False: too few deltas were of use, and the weights are those of the round before."""
    hash: str = ""
    """xxh3-128 of state.safetensors."""


@dataclass
class OuterState:
    """The newest round. Arrays are flat, by parameter."""

    record: RoundRecord
    weights: Arrays
    moments: dict[str, Arrays]

    @property
    def sizes(self) -> dict[str, int]:
        """Elements of each parameter."""
        return {name: len(array) for name, array in self.weights.items()}

    @staticmethod
    def initial(weights: Arrays, moments: Sequence[str]) -> OuterState:
        zeros = {kind: {name: np.zeros_like(array) for name, array in weights.items()} for kind in moments}
        return OuterState(RoundRecord(0), weights, zeros)


class OuterStateDamaged(StorageError):
    """What was read is not what was written: to ask again is of no use."""


class OuterStore:
    """The rounds in a run folder."""

    def __init__(self, storage: Storage, keep_rounds: int) -> None:
        self._storage, self._keep = storage, keep_rounds
        self._read: tuple[int, Arrays] | None = None
        """The round that was last read, for the silo that repeats it."""

    def rounds(self) -> list[int]:
        """Those that are whole, in order."""
        names = (re.fullmatch(r"round-(\d+)", name) for name in self._storage.list("outer"))
        numbers = [int(match[1]) for match in names if match]
        return [number for number in numbers if self._storage.exists(f"{_folder(number)}/round.json")]

    def save(self, state: OuterState) -> None:
        """Makes a round durable, and forgets what is older than the newest few. Raises StorageError."""
        number = state.record.round
        self._storage.remove(_folder(number))  # of a driver that was killed while it wrote
        hasher = xxhash.xxh3_128()
        arrays = {WEIGHTS: state.weights, **state.moments}
        self._storage.write_stream(f"{_folder(number)}/state.safetensors", _hashed(_safetensors(arrays), hasher))
        state.record = replace(state.record, hash=hasher.hexdigest())
        self._storage.create(f"{_folder(number)}/round.json", json.dumps(asdict(state.record)).encode())
        for old in self.rounds()[: -self._keep]:
            self._storage.remove(f"{_folder(old)}/round.json")
            self._storage.remove(_folder(old))

    def newest(self) -> OuterState | None:
        """The newest round, or None before the first. Raises OuterStateDamaged, and StorageError."""
        if not (rounds := self.rounds()):
            return None
        record = self.record_of(rounds[-1])
        kinds = self._load(record)
        return OuterState(record, kinds.pop(WEIGHTS), kinds)

    def record_of(self, number: int) -> RoundRecord:
        return RoundRecord(**json.loads(self._storage.read(f"{_folder(number)}/round.json")))

    def weights_of(self, number: int) -> Arrays:
        """Of a round that is kept. Raises OuterStateDamaged, and StorageError."""
        if self._read is None or self._read[0] != number:
            self._read = number, self._load(self.record_of(number))[WEIGHTS]
        return self._read[1]

    def _load(self, record: RoundRecord) -> dict[str, Arrays]:
        path = f"{_folder(record.round)}/state.safetensors"
        data = self._storage.read(path)
        if xxhash.xxh3_128_hexdigest(data) != record.hash:
            raise OuterStateDamaged(
                f"{self._storage.path(path)} is damaged: its hash is not that of round.json. Restore the file, or remove the "
                "folder: silos then go on from the round before"
            )
        return _parse(data)


def _folder(number: int) -> str:
    return f"outer/round-{number:08d}"


def _safetensors(kinds: Mapping[str, Arrays]) -> Iterator[bytes | memoryview]:
    """The format of github.com/huggingface/safetensors, array by array: the library's own writer wants the whole file in memory."""
    entries, offset = {}, 0
    for kind, arrays in kinds.items():
        for name, array in arrays.items():
            end = offset + array.nbytes
            entries[f"{kind}/{name}"] = {"dtype": "F32", "shape": [len(array)], "data_offsets": [offset, end]}
            offset = end
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    yield _LENGTH.pack(len(header)) + header
    for arrays in kinds.values():
        for array in arrays.values():
            yield array.data.cast("B")


def _parse(data: bytes) -> dict[str, Arrays]:
    (size,) = _LENGTH.unpack_from(data)
    body = memoryview(data)[_LENGTH.size + size :]
    kinds: dict[str, Arrays] = {}
    for label, entry in json.loads(data[_LENGTH.size : _LENGTH.size + size]).items():
        kind, name = label.split("/", 1)
        start, end = entry["data_offsets"]
        kinds.setdefault(kind, {})[name] = np.frombuffer(body[start:end], np.float32).copy()
    return kinds


def _hashed(chunks: Iterator[bytes | memoryview], hasher: Any) -> Iterator[bytes | memoryview]:
    for chunk in chunks:
        hasher.update(chunk)
        yield chunk
