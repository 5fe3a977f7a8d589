"""What a publication holds: a prepared corpus in an object store, its training tokens cut into shards.

| object | holds |
|---|---|
| `stream.json` | sequences per shard; size and xxh3-128 of every other object; written last |
| `shards/00000000.bin`, ... | of consecutive sequences: their labels row by row (padding is 0), then the first input of every piece of them |
| all others | the files of the cache as they are (`cache.py`), but for `train.bin` |

A row's inputs are its labels moved by one, except where a piece of a document begins; so a shard holds everything that its sequences
are made of, however documents are packed, in hardly more bytes than its tokens have in `train.bin`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from zerofleet.trainer.data.sequences import IGNORED_LABEL, SequenceStore
from zerofleet.trainer.data.stream.order import ORDER_NAME
from zerofleet.trainer.errors import DataError

Int64 = NDArray[np.int64]

STREAM_NAME = "stream.json"
TRAIN_TOKENS = "train.bin"
"""The one file of a cache that is published in shards."""
_VERSION = 1


@dataclass(frozen=True)
class Entry:
    """One object."""

    num_bytes: int
    xxh3_128: str

    @staticmethod
    def of(data: bytes | memoryview) -> Entry:
        return Entry(len(data), xxhash.xxh3_128_hexdigest(data))

    def difference(self, data: bytes | memoryview) -> str:
        """What is wrong with bytes that should be this object's; empty when nothing is."""
        if len(data) != self.num_bytes:
            return f"it has {len(data)} of {self.num_bytes} bytes"
        return "" if Entry.of(data) == self else f"its hash is {Entry.of(data).xxh3_128}, not {self.xxh3_128}"


@dataclass(frozen=True)
class Published:
    """The content of `stream.json`."""

    content: str
    """Fingerprint of the cache that was published."""
    shard_sequences: int
    """Of every shard but the last."""
    files: Mapping[str, Entry]
    shards: tuple[Entry, ...]

    @property
    def fingerprint(self) -> str:
        """Of what ranks are fed: the content, and how it is cut, which is part of the order."""
        return xxhash.xxh3_128_hexdigest(json.dumps([ORDER_NAME, self.content, self.shard_sequences]).encode())

    def to_bytes(self) -> bytes:
        fields = {
            "version": _VERSION,
            "content": self.content,
            "shard_sequences": self.shard_sequences,
            "files": {name: [entry.num_bytes, entry.xxh3_128] for name, entry in self.files.items()},
            "shards": [[entry.num_bytes, entry.xxh3_128] for entry in self.shards],
        }
        return json.dumps(fields, indent=1).encode()

    @staticmethod
    def from_bytes(data: bytes, where: str) -> Published:
        """Raises DataError when it is none, or of another version."""
        try:
            fields: dict[str, Any] = json.loads(data)
            if fields["version"] != _VERSION:
                raise DataError(
                    f"{where} was published in format version {fields['version']}, this zerofleet reads {_VERSION}: publish again"
                )
            files = {name: Entry(*entry) for name, entry in fields["files"].items()}
            shards = tuple(Entry(*entry) for entry in fields["shards"])
            return Published(fields["content"], fields["shard_sequences"], files, shards)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{where} is damaged ({type(error).__name__}: {error}): publish again into another folder"
            ) from error


def shard_path(shard: int) -> str:
    return f"shards/{shard:08d}.bin"


def shard_of(store: SequenceStore, first: int, stop: int, dtype: np.dtype[Any]) -> bytes:
    """Sequences [first, stop) as a shard."""
    samples = np.arange(first, stop)
    input_ids, labels = store.read(samples)
    _, places = store.pieces_of(samples)
    parts = np.where(labels == IGNORED_LABEL, 0, labels).ravel(), input_ids.ravel()[places]
    return np.concatenate(parts).astype(dtype).tobytes()


def sequences_of(shard: NDArray[Any], tables: SequenceStore, rows: range, samples: Int64) -> tuple[Int64, Int64]:
    """The inverse of `shard_of`: input ids and labels of some of the sequences `rows` of a shard, as `SequenceStore.read` gives
    them. `tables` knows everything but the tokens."""
    length, num_labels = tables.sequence_length, len(rows) * tables.sequence_length
    labels = shard[:num_labels].reshape(len(rows), length)[samples - rows.start].astype(np.int64)
    input_ids = np.empty_like(labels)
    input_ids[:, 1:] = labels[:, :-1]
    pieces, places = tables.pieces_of(samples)
    first_piece = tables.pieces_of(np.array([rows.start]))[0][0]
    input_ids.ravel()[places] = shard[num_labels:][pieces - first_piece]
    num_targets = tables.num_targets(samples)
    for row in np.flatnonzero(num_targets < length):
        input_ids[row, num_targets[row] :] = 0
        labels[row, num_targets[row] :] = IGNORED_LABEL
    return input_ids, labels
