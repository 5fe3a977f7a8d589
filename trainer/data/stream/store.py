"""The training sequences of a publication, as `SequenceStore` gives those of a cache that is on the disk as a whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zerofleet.trainer.config import StreamConfig
from zerofleet.trainer.data.sequences import SequenceStore
from zerofleet.trainer.data.stream.order import WindowedOrder, shards_of_samples
from zerofleet.trainer.data.stream.published import STREAM_NAME, Published, sequences_of
from zerofleet.trainer.data.stream.shards import ShardFolder
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.storage import Storage

Int64 = NDArray[np.int64]

SHARDS_FOLDER = "shards"
_WINDOWS_AHEAD = 1
"""Windows that are fetched while one is fed."""


class StreamedStore(SequenceStore):
    """Everything but the tokens is of `tables`; the tokens come in shards."""

    def __init__(self, tables: SequenceStore, published: Published, config: StreamConfig, shards: ShardFolder) -> None:
        self.document_ends, self.sequence_length = tables.document_ends, tables.sequence_length
        self.num_tokens, self.num_sequences = tables.num_tokens, tables.num_sequences
        self.source_sizes = tables.source_sizes
        self.published = published
        self._tables, self._config, self._shards = tables, config, shards

    @staticmethod
    def of(tables: SequenceStore, folder: Path, config: StreamConfig, dtype: np.dtype[Any]) -> StreamedStore:
        """Of a folder that `attach.attach` has filled. UserError when two windows do not fit into the bound."""
        published = Published.from_bytes((folder / STREAM_NAME).read_bytes(), str(folder / STREAM_NAME))
        largest = sorted((entry.num_bytes for entry in published.shards), reverse=True)
        needed = sum(largest[: (1 + _WINDOWS_AHEAD) * config.window_shards])
        if needed > config.max_bytes:
            raise UserError(
                f"data.stream.max_bytes={config.max_bytes} is too little: the shards of two windows, {2 * config.window_shards} of up to "
                f"{largest[0]} bytes, are {needed}. Raise it, or lower data.stream.window_shards ({config.window_shards}) before the run "
                "begins: fewer are shuffled together then"
            )
        storage = Storage(config.url, "data.stream.url")
        where, setting = shards_folder(folder)
        shards = ShardFolder(storage, where, published.shards, dtype, config.max_bytes, setting)
        return StreamedStore(tables, published, config, shards)

    def check_batch(self, global_batch_size: int) -> None:
        """UserError when the shards that a step can need do not fit into the bound: where it reaches over a window that is smaller than it is, they are
        of three or more."""
        sizes = [entry.num_bytes for entry in self.published.shards]
        order = self.order(0, "")  # every seed's windows are of these sizes
        num_full, is_last_on_top = order.most_shards(global_batch_size)
        needed = sum(sorted(sizes, reverse=True)[:num_full])
        if is_last_on_top and num_full < len(sizes):
            needed += sizes[-1]
        if needed > self._config.max_bytes:
            raise UserError(
                f"data.stream.max_bytes={self._config.max_bytes} is too little for train.global_batch_size={global_batch_size}: windows of "
                f"data.stream.window_shards={self._config.window_shards} shards have {order.smallest_window} sequences or more, so a step "
                f"can need shards of {needed} bytes. Raise it, or lower the batch"
            )

    def order(self, seed: int, silo: str) -> WindowedOrder:
        """The run's."""
        return WindowedOrder(self.num_sequences, self.published.shard_sequences, self._config.window_shards, seed, silo)

    def read_ahead(self, order: WindowedOrder, position: int, samples: Int64) -> None:
        """Has the shards of a step's samples fetched, and as far as there is room those of the window that holds its first position, and of the
        next one."""
        needed = [shard for shard, _ in shards_of_samples(samples, self.published.shard_sequences)]
        wanted, room = [], self._config.max_bytes
        for shard in dict.fromkeys([*needed, *order.shards_from(position, 1 + _WINDOWS_AHEAD)]):
            room -= self.published.shards[shard].num_bytes
            if room < 0:
                break
            wanted.append(shard)
        self._shards.want(wanted)

    def num_targets(self, indices: Int64) -> Int64:
        return self._tables.num_targets(indices)

    def position_ids(self, indices: Int64) -> Int64:
        return self._tables.position_ids(indices)

    def pieces_of(self, indices: Int64) -> tuple[Int64, Int64]:
        return self._tables.pieces_of(indices)

    def read(self, indices: Int64) -> tuple[Int64, Int64]:
        """Also raises what `ShardFolder.get` does."""
        self._check(indices)
        input_ids = np.empty((len(indices), self.sequence_length), np.int64)
        labels = np.empty_like(input_ids)
        size = self.published.shard_sequences
        for shard, places in shards_of_samples(indices, size):
            rows = range(shard * size, min((shard + 1) * size, self.num_sequences))
            found = sequences_of(self._shards.get(shard), self._tables, rows, indices[places])
            input_ids[places], labels[places] = found
        return input_ids, labels


def shards_folder(folder: Path) -> tuple[Path, str]:
    """Where a node keeps the shards of a publication whose tables lie in `folder`, and the setting that says so: its own disk where
    `$ZEROFLEET_SCRATCH` names one, since `folder` may be shared by all nodes."""
    if scratch := os.environ.get("ZEROFLEET_SCRATCH"):
        return Path(scratch) / "streams" / folder.name / SHARDS_FOLDER, "ZEROFLEET_SCRATCH"
    return folder / SHARDS_FOLDER, "data.cache"
