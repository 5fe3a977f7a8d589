"""Ledger lines as columns: nothing is lost, and a line that is none is refused."""

from __future__ import annotations

import numpy as np
import pytest

from zerofleet.trainer.data.ledger import LedgerEntry
from zerofleet.trainer.data.ledger_table import LedgerTable
from zerofleet.trainer.errors import StorageError

ENTRIES = [
    LedgerEntry(1, 1, "main", [[0, 8]], 8, 250, "00000000000000ff", "f" * 32, 2, "0011"),
    LedgerEntry(2, 1, "main", [[8, 10], [12, 18]], 8, 256, "ffffffffffffffff"),
    LedgerEntry(1, 1, "other", [[0, 3]], 3, 9, "0" * 16),
    LedgerEntry(3, 2, "main", [], 0, 0, "0" * 16),
    LedgerEntry(4, 2, "main", [[5, 5], [9, 17]], 8, 1, "0" * 16),
    LedgerEntry(5, 2, "main", [[20, 21]], 1, 1, "0" * 16),
]


def table(lines=None) -> LedgerTable:
    return LedgerTable.of([entry.to_dict() for entry in ENTRIES] if lines is None else lines, "main")


def test_columns_of_one_silo():
    found = table()
    assert len(found) == 5
    assert found.steps.tolist() == [1, 2, 3, 4, 5] and found.attempts.tolist() == [1, 1, 2, 2, 2]
    assert found.digests.tolist() == [255, 2**64 - 1, 0, 0, 0]
    assert (found.data[0], found.micro_batch_sizes[0], found.rank_digests[0]) == ("f" * 32, 2, "0011")
    assert found.ranges(1) == [[8, 10], [12, 18]] and found.ranges(2) == []


def test_positions_line_by_line():
    found = table()
    assert found.num_positions.tolist() == [8, 8, 0, -1, 1]
    assert found.positions(np.array([1, 4, 0])).tolist() == [8, 9, 12, 13, 14, 15, 16, 17, 20, *range(8)]
    assert found.positions(np.array([], dtype=np.int64)).tolist() == []


def test_an_empty_ledger():
    found = table([])
    assert len(found) == 0 and found.num_positions.tolist() == [] and found.starts.dtype == np.int64


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "3"},
        {"step": 2**70},
        {"num_tokens": 1.5},
        {"ranges": [[0]]},
        {"ranges": [[0, "8"]]},
        {"ranges": 8},
        {"digest": "xyz"},
        {"digest": "1" * 17},
        {"digest": None},
        {"data": []},
    ],
)
def test_a_line_that_is_no_entry_is_refused(changes):
    with pytest.raises(StorageError, match="the ledger is damaged"):
        table([{**ENTRIES[0].to_dict(), **changes}])


@pytest.mark.parametrize("line", [[], 3, {"step": 1}])
def test_what_is_no_line_is_refused(line):
    with pytest.raises(StorageError, match="the ledger is damaged"):
        table([line])


def test_a_field_of_a_later_version_is_left_alone():
    assert len(table([{**ENTRIES[0].to_dict(), "later": 1}])) == 1
