"""Shares of a step and the replica check, without a process group."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from zerofleet.trainer import exchange as module
from zerofleet.trainer.data.ledger import LedgerEntry
from zerofleet.trainer.errors import DataError
from zerofleet.trainer.exchange import StepShare, StepSum, exchange, odd_ranks, replica_digest
from zerofleet.trainer.world import World


@pytest.fixture
def gathered(monkeypatch):
    """Stands in for the collective: every rank but the first contributes a given row."""
    rows = []

    def all_gather_single(output, mine):
        output.copy_(torch.cat([mine, *rows]))

    monkeypatch.setattr(module.dist, "all_gather_single", all_gather_single)
    return rows


def row(share):
    captured = []
    original, dist.all_gather_single = (
        dist.all_gather_single,
        lambda output, mine: (captured.append(mine), output.copy_(mine)),
    )
    try:
        exchange(share, torch.device("cpu"), 1)
    finally:
        dist.all_gather_single = original
    return captured[0]


def test_counts_add_up_digests_wrap_and_the_strongest_request_wins(gathered):
    gathered += [row(StepShare(2, 3, 30, 2**64 - 1, 0.5)), row(StepShare(1, 1, 10, 5, 0.25))]
    total = exchange(StepShare(0, 4, 40, 7, 1.0), torch.device("cpu"), 3)
    assert total == StepSum(
        control=2, num_sequences=8, num_tokens=80, digest=11, loss_sum=1.75, rank_digests=(7, 2**64 - 1, 5)
    )
    entry = total.ledger_entry(3, World(0, 0, 0, 3, "here", 2), [[16, 24]], "f" * 32, 4)
    assert entry == LedgerEntry(3, 2, "main", [[16, 24]], 8, 80, f"{11:016x}", "f" * 32, 4, "0007ffff0005")


def test_a_step_that_was_not_fed_what_its_index_says_is_refused():
    total = StepSum(0, 8, 80, 0, 0.0)
    total.verify(3, 8, 80)
    with pytest.raises(DataError, match="step 3 was fed 8 sequences with 80 tokens, the index says 8 with 81"):
        total.verify(3, 8, 81)


@pytest.mark.parametrize(("others", "odd"), [([5, 5], []), ([5, 6], [2]), ([6, 6], [0]), ([6], [1]), ([6, 7], [1, 2])])
def test_the_odd_replica_is_named(gathered, others, odd):
    gathered += [torch.tensor([value]) for value in others]
    assert odd_ranks(5, torch.device("cpu"), len(others) + 1) == odd


def test_a_replica_digest_sees_one_bit():
    model = torch.nn.Linear(8, 8, dtype=torch.bfloat16)
    before = replica_digest(model)
    assert replica_digest(model) == before
    model.weight.data.view(torch.int16)[3, 3] ^= 1
    assert replica_digest(model) != before
