"""The lines of a ledger (`ledger.LedgerEntry`) as columns: what a run of a million steps was fed, as a few arrays."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zerofleet.trainer.errors import StorageError

Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]

_NUMBERS = ("step", "attempt", "num_sequences", "num_tokens", "micro_batch_size")
_ADDED = ("micro_batch_size",)
"""Lines of older versions do not have it."""


@dataclass(frozen=True)
class LedgerTable:
    """Line i is entry i of every column; its ranges are those from `first_range[i]` to `first_range[i + 1]`."""

    steps: Int64
    attempts: Int64
    num_sequences: Int64
    num_tokens: Int64
    digests: UInt64
    data: list[str]
    micro_batch_sizes: Int64
    rank_digests: list[str]
    first_range: Int64
    starts: Int64
    ends: Int64
    """Of all ranges of all lines, one after the other."""

    @staticmethod
    def of(lines: Iterable[dict[str, Any]], silo: str) -> LedgerTable:
        """The lines of one silo. StorageError for a line that is no ledger entry."""
        # Flat arrays at once: a million entries as objects would fill a gigabyte.
        numbers, digests, bounds = array("q"), array("Q"), array("q")
        data: list[str] = []
        rank_digests: list[str] = []
        num_ranges = [0]
        names: dict[str, str] = {}  # of the few fingerprints of a ledger, one copy each
        for line in lines:
            try:
                if line["silo"] != silo:
                    continue
                numbers.extend([line.get(name, 0) if name in _ADDED else line[name] for name in _NUMBERS])
                digests.append(int(line["digest"], 16))
                data.append(names.setdefault(line.get("data", ""), line.get("data", "")))
                rank_digests.append(line.get("rank_digests", ""))
                bytes.fromhex(rank_digests[-1])  # or it is no such line
                num_ranges.append(len(line["ranges"]))
                for start, end in line["ranges"]:
                    bounds.extend((start, end))
            except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
                raise _damaged(line, error) from error
        columns = dict(zip(_NUMBERS, np.array(numbers).reshape(-1, len(_NUMBERS)).T.copy(), strict=True))
        starts, ends = np.array(bounds).reshape(-1, 2).T.copy()
        return LedgerTable(
            steps=columns["step"],
            attempts=columns["attempt"],
            num_sequences=columns["num_sequences"],
            num_tokens=columns["num_tokens"],
            digests=np.array(digests),
            data=data,
            micro_batch_sizes=columns["micro_batch_size"],
            rank_digests=rank_digests,
            first_range=np.cumsum(num_ranges, dtype=np.int64),
            starts=starts,
            ends=ends,
        )

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def num_ranges(self) -> Int64:
        """Of every line."""
        return np.diff(self.first_range)

    @property
    def lines_of_ranges(self) -> Int64:
        """The line that each range is of."""
        return np.repeat(np.arange(len(self)), self.num_ranges)

    @property
    def num_positions(self) -> Int64:
        """Of every line; -1 where a range is none."""
        sizes = self.ends - self.starts
        totals = np.concatenate([[0], np.cumsum(sizes)])[self.first_range]
        counts: Int64 = np.diff(totals)
        counts[self.lines_of_ranges[(sizes <= 0) | (self.starts < 0)]] = -1
        return counts

    def positions(self, lines: Int64) -> Int64:
        """All positions of these lines, in their order; for lines whose `num_positions` is sane."""
        counts = self.num_ranges[lines]
        ranges = _counted_up(self.first_range[lines], counts)
        return _counted_up(self.starts[ranges], self.ends[ranges] - self.starts[ranges])

    def ranges(self, line: int) -> list[list[int]]:
        part = slice(self.first_range[line], self.first_range[line + 1])
        return [[int(start), int(end)] for start, end in zip(self.starts[part], self.ends[part], strict=True)]


def _counted_up(firsts: Int64, counts: Int64) -> Int64:
    """first, first + 1, ... so many times, of each in turn."""
    before = np.cumsum(counts) - counts
    counted: Int64 = np.arange(int(counts.sum()), dtype=np.int64) + np.repeat(firsts - before, counts)
    return counted


def _damaged(line: Any, error: Exception) -> StorageError:
    return StorageError(
        f"the ledger is damaged: {str(line)[:80]!r} is no entry ({type(error).__name__}: {error}). Restore the file, or take the line "
        "out of it"
    )
