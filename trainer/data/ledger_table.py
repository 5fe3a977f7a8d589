"""The lines of a ledger as columns: what a run of a million steps was fed, as a few arrays."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zerofleet.trainer.data.ledger import LedgerEntry
from zerofleet.trainer.errors import StorageError

Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]

_NUMBERS = ("step", "attempt", "num_sequences", "num_tokens", "micro_batch_size")


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
        numbers, digests, bounds = (
            array("q"),
            array("Q"),
            array("q"),
        )  # a million entries as objects would fill a gigabyte
        data: list[str] = []
        rank_digests: list[str] = []
        num_ranges = [0]
        names: dict[str, str] = {}  # of the few fingerprints of a ledger, one copy each
        for line in lines:
            entry, digest = _parse(line)
            if entry.silo == silo:
                numbers.extend(getattr(entry, name) for name in _NUMBERS)
                digests.append(digest)
                data.append(names.setdefault(entry.data, entry.data))
                rank_digests.append(entry.rank_digests)
                num_ranges.append(len(entry.ranges))
                bounds.extend(bound for start_and_end in entry.ranges for bound in start_and_end)
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


def _parse(line: Any) -> tuple[LedgerEntry, int]:
    """The entry and its digest."""
    try:
        entry = LedgerEntry.from_dict(line)
        digest = int(entry.digest, 16)
        bounds = [bound for start, end in entry.ranges for bound in (start, end)]
        if not all(type(n) is int and abs(n) < 2**62 for n in (*(getattr(entry, name) for name in _NUMBERS), *bounds)):
            raise ValueError("a number is none")
        if not 0 <= digest < 2**64 or re.fullmatch(r"[0-9a-f]*", entry.rank_digests) is None:
            raise ValueError("a digest is none")
    except (AttributeError, TypeError, ValueError) as error:
        raise StorageError(
            f"the ledger is damaged: {str(line)[:80]!r} is no entry ({error}). Restore the file, or take the line out of it"
        ) from error
    return entry, digest
