"""A run without processes: attempts of any size that are killed anywhere, and the ledger that their ranks would leave."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from zerofleet.trainer.batch import BatchPlan
from zerofleet.trainer.config import DEFAULT_SILO
from zerofleet.trainer.data.feed import Feed
from zerofleet.trainer.data.ledger import LedgerEntry, rank_digests_of
from zerofleet.trainer.data.quarantine import union
from zerofleet.trainer.data.sequences import SequenceStore
from zerofleet.trainer.run_folder import AttemptRecord

WORLD_SIZES = (1, 2, 3, 4, 6, 8)


def small_store(num_tokens: int = 500, sequence_length: int = 8, seed: int = 0) -> SequenceStore:
    """Random tokens; the last sequence is short."""
    tokens = np.random.default_rng(seed).integers(0, 300, num_tokens).astype(np.uint16)
    return SequenceStore(tokens, np.array([num_tokens]), sequence_length)


def feed_of(store: SequenceStore, batch: int = 10, micro: int = 3, world_size: int = 2, seed: int = 5) -> Feed:
    return Feed(store, BatchPlan.of(batch, micro, world_size), seed, DEFAULT_SILO, ())


def ledger_line(feed: Feed, step: int, attempt: int, wrong_rank: int | None = None, data: str = "") -> dict[str, Any]:
    """What the ranks of `feed` would have the ledger say of a step; `wrong_rank` is fed a sample that is not its own."""
    plan, sums = feed.step_plan(step - 1), []
    num_sequences = num_tokens = 0
    for rank in range(feed.plan.world_size):
        fed = feed.with_wrong_sample(plan, rank) if rank == wrong_rank else plan
        batches = list(feed.micro_batches(fed, rank))
        sums.append(sum(batch.digest for batch in batches) % 2**64)
        num_sequences += sum(batch.num_sequences for batch in batches)
        num_tokens += sum(batch.num_tokens for batch in batches)
    digest = f"{sum(sums) % 2**64:016x}"
    size, digests = feed.plan.micro_batch_size, rank_digests_of(sums)
    return LedgerEntry(
        step, attempt, feed.silo, plan.ranges, num_sequences, num_tokens, digest, data, size, digests
    ).to_dict()


@dataclass
class SimulatedRun:
    """Its attempts and its ledger, in the order in which they were written."""

    feed: Feed
    attempts: list[AttemptRecord] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    data: str = ""

    def attempt(
        self,
        start: int,
        end: int,
        world_size: int = 2,
        micro: int = 3,
        quarantine: list[list[int]] | None = None,
        wrong: dict[int, int] | None = None,
    ) -> SimulatedRun:
        """The next attempt does steps start + 1 to end. `wrong` says at which step which rank is fed a wrong sample."""
        before = self.attempts[-1].quarantine if self.attempts else []
        number, left_out = len(self.attempts) + 1, union(before, quarantine or [])
        record = AttemptRecord(number, start, None, world_size, 1, 0.0, "here", 1, quarantine=left_out)
        self.attempts.append(record)
        plan = BatchPlan.of(self.feed.plan.global_batch_size, micro, world_size)
        feed = replace(self.feed, plan=plan, quarantine=left_out)
        for step in range(start + 1, end + 1):
            self.lines.append(ledger_line(feed, step, number, (wrong or {}).get(step), self.data))
        return self

    def line(self, step: int) -> dict[str, Any]:
        """The newest of a step."""
        return [line for line in self.lines if line["step"] == step][-1]


def killed_and_resized(feed: Feed, num_steps: int, num_kills: int, draw: random.Random) -> SimulatedRun:
    """A run that is killed so often, anywhere, goes on from any step done before with any number of ranks, and now and then leaves
    out what the step was fed in which it was killed."""
    run, done, quarantine = SimulatedRun(feed), 0, []
    for kill in range(num_kills + 1):
        start = max(0, done - draw.randrange(4)) if kill else 0
        end = num_steps if kill == num_kills else min(num_steps, start + draw.randrange(2 * num_steps // num_kills))
        run.attempt(start, end, draw.choice(WORLD_SIZES), draw.randrange(1, 5), quarantine)
        quarantine = []
        if kill < num_kills and end < num_steps and draw.random() < 0.3:
            failed = replace(feed, quarantine=run.attempts[-1].quarantine).step_plan(end)
            quarantine = failed.ranges  # of step end + 1, which the next attempt comes to again
        done = end
    return run
