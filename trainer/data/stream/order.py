"""The windowed order: data shards in random order, and the samples of each window of shards shuffled together. Pure.

For corpora of which only a part fits on the disk: at any position a rank needs the shards of one window, or of those that a step
reaches into. As in the full order (order.py) nothing is stored, any position is reached in O(1), each sample comes once
per epoch, and who is fed what is no part of it. What is less: samples of shards that are far apart in an epoch never share a step.

The order is frozen: runs resume by position, so a change here would make them repeat and miss samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zerofleet.trainer.config import DEFAULT_SOURCE
from zerofleet.trainer.data.order import key_of, permuted

Int64 = NDArray[np.int64]

ORDER_NAME = "windowed/1"
"""Part of the data's fingerprint, and of every key."""


@dataclass(frozen=True)
class WindowedOrder:
    """Sample i lies in shard i // shard_samples; only the last shard may hold fewer.

    In an epoch each shard has a place. The full ones are at the places that a keyed permutation gives them, in between the last shard
    at a place that is drawn: the places before it are as they would be without it. Window w holds the shards at places
    [w * window_shards, (w + 1) * window_shards), and its positions a keyed permutation of their samples.
    """

    num_samples: int
    shard_samples: int
    window_shards: int
    seed: int
    silo: str

    @property
    def num_shards(self) -> int:
        return -(-self.num_samples // self.shard_samples)

    @property
    def num_windows(self) -> int:
        return -(-self.num_shards // self.window_shards)

    @property
    def window_samples(self) -> int:
        """Of a window whose shards are all full."""
        return self.window_shards * self.shard_samples

    @property
    def smallest_window(self) -> int:
        """Samples of the window that has the fewest: the last of an epoch where the last shard is in it, too."""
        absent = self.num_windows * self.window_shards - self.num_shards
        return (self.window_shards - absent) * self.shard_samples - self._missing

    def most_shards(self, num_positions: int) -> tuple[int, bool]:
        """In how many full shards so many consecutive samples of the order lie at most, and whether in the short last one on top of them.

        Those of two windows, one sample in each at least. Or, with windows that lie whole between these, some samples fewer of those two and all
        shards of the ones between: where all samples but 2 x `window_shards` lie, or more if no window is that small.
        """
        of_two = min(2 * self.window_shards, num_positions)
        between = max(self.smallest_window, num_positions - 2 * self.window_shards)
        full = min(2 * self.window_shards, num_positions - between) + between // self.shard_samples
        if between > num_positions - 2 or full < of_two:
            return of_two, False
        return full, self._missing > 0

    @property
    def _missing(self) -> int:
        """Samples that the last shard lacks."""
        return self.num_shards * self.shard_samples - self.num_samples

    def samples_at(self, positions: Int64) -> Int64:
        """The sample at each position; epoch e is positions [e * num_samples, (e + 1) * num_samples)."""
        samples = np.empty(len(positions), np.int64)
        epochs, within = np.divmod(np.asarray(positions, dtype=np.int64), self.num_samples)
        for epoch in np.unique(epochs).tolist():
            mine = np.flatnonzero(epochs == epoch)
            windows = self._windows_at(epoch, within[mine])
            for window in np.unique(windows).tolist():
                rows = mine[windows == window]
                samples[rows] = self._samples_in(epoch, window, within[rows])
        return samples

    def shards_from(self, position: int, num_windows: int) -> list[int]:
        """The shards of the window that holds a position and of the next ones, in the order in which they are needed; each once."""
        epoch, within = divmod(position, self.num_samples)
        window = int(self._windows_at(epoch, np.array([within]))[0])
        found: dict[int, None] = {}
        for _ in range(num_windows):
            found |= dict.fromkeys(self.shards_of(epoch, window).tolist())
            epoch, window = (epoch, window + 1) if window + 1 < self.num_windows else (epoch + 1, 0)
        return list(found)

    def shards_of(self, epoch: int, window: int) -> Int64:
        """The shards of a window, by their places."""
        places = np.arange(window * self.window_shards, min((window + 1) * self.window_shards, self.num_shards))
        last_place = self._last_place(epoch)
        full = places - (places > last_place)
        full[places == last_place] = 0  # looked up and written over
        shards = self._shuffled(full, max(1, self.num_shards - 1), epoch, "shards")
        shards[places == last_place] = self.num_shards - 1
        return shards

    def _last_place(self, epoch: int) -> int:
        """Where the last shard goes: a draw whose bias is below 2^-40 for less than 2^24 shards."""
        return self._key(epoch, "last") % self.num_shards

    def _windows_at(self, epoch: int, within: Int64) -> Int64:
        """The window of each place in an epoch: those after the last shard's begin earlier by what it lacks."""
        of_last = self._last_place(epoch) // self.window_shards
        is_later = within >= (of_last + 1) * self.window_samples - self._missing
        windows: Int64 = (within + self._missing * is_later) // self.window_samples
        return windows

    def _samples_in(self, epoch: int, window: int, within: Int64) -> Int64:
        """The samples at places of one window of an epoch."""
        shards, last_place = self.shards_of(epoch, window), self._last_place(epoch)
        start = window * self.window_samples - self._missing * (last_place < window * self.window_shards)
        slot = last_place - window * self.window_shards  # of the last shard, where the window holds it
        holds_last = 0 <= slot < len(shards)
        size = len(shards) * self.shard_samples - self._missing * holds_last
        drawn = self._shuffled(within - start, size, epoch, "window", window)
        if holds_last:
            drawn[drawn >= (slot + 1) * self.shard_samples - self._missing] += self._missing
        slots, offsets = np.divmod(drawn, self.shard_samples)
        samples: Int64 = shards[slots] * self.shard_samples + offsets
        return samples

    def _shuffled(self, values: Int64, size: int, epoch: int, *what: int | str) -> Int64:
        return permuted(values, size, np.array([self._key(epoch, *what)], dtype=np.uint64))

    def _key(self, epoch: int, *what: int | str) -> int:
        return key_of(ORDER_NAME, self.seed, DEFAULT_SOURCE, epoch, self.silo, *what)


def shards_of_samples(samples: Int64, shard_samples: int) -> Iterator[tuple[int, Int64]]:
    """Each shard that holds some of the samples, and which of them these are."""
    shards = samples // shard_samples
    for shard in np.unique(shards).tolist():
        yield shard, np.flatnonzero(shards == shard)
