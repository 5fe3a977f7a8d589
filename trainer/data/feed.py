"""What one rank feeds in one step: the batch rule applied to the sample order and the cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from zerofleet.trainer.batch import BatchPlan
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.data.ledger import combine, sample_digests
from zerofleet.trainer.data.mixture import ONE_SOURCE, Schedule, interleaved, mixed_samples
from zerofleet.trainer.data.order import ranges_of, step_positions
from zerofleet.trainer.data.quarantine import Ranges
from zerofleet.trainer.data.sequences import IGNORED_LABEL, PackedStore, SequenceStore
from zerofleet.trainer.data.stream.store import StreamedStore

Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]
_PLANNED_POSITIONS = 4096
_READ_TOKENS = 2**15
"""Tokens that `digests_of` reads at a time: within the processor's caches."""


@dataclass(frozen=True)
class MicroBatch:
    """One block as tensors are made of it: `labels` and each of `inputs` are int64 [micro_batch_size, sequence_length]."""

    block: int
    inputs: dict[str, Int64]
    """What the model is called with: `input_ids`, and `position_ids` where attention stays within documents."""
    labels: Int64
    num_sequences: int
    num_tokens: int
    digest: int


@dataclass(frozen=True)
class StepPlan:
    """What all ranks together feed in one step, known from the index alone."""

    positions: Int64
    samples: Int64
    num_tokens: int

    @property
    def ranges(self) -> list[list[int]]:
        return ranges_of(self.positions)


@dataclass(frozen=True)
class Feed:
    """Training sequences in the run's order."""

    store: SequenceStore
    plan: BatchPlan
    seed: int
    silo: str
    quarantine: Ranges
    """What the attempt leaves out."""
    document_mask: bool = False
    """Whether attention stays within documents."""
    schedule: Schedule = ONE_SOURCE
    """Which source each position takes from."""
    curriculum_stages: int = 1
    _planned: dict[int, list[StepPlan]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """By the first of their indices, the steps that were planned last."""

    @staticmethod
    def of(config: TrainConfig, store: SequenceStore, plan: BatchPlan, silo: str, quarantine: Ranges) -> Feed:
        """What a job's ranks are fed. UserError when the global batch is too large for a store that is streamed."""
        if isinstance(store, StreamedStore):
            store.check_batch(plan.global_batch_size)
        schedule = Schedule.of(config.data.weights)
        data = config.data
        return Feed(
            store, plan, config.run.seed, silo, quarantine, data.document_mask, schedule, data.curriculum_stages
        )

    def step_plan(self, index: int) -> StepPlan:
        """The samples of the step with this index (from 0). O(1) in the position.

        Small steps are planned several at a time: the order of 4096 positions takes twice as long as that of 256.
        """
        batch = self.plan.global_batch_size
        num_steps = max(1, _PLANNED_POSITIONS // batch)
        first = index - index % num_steps
        if first not in self._planned:
            positions = step_positions(first, batch, self.quarantine, num_steps)
            samples = self.samples_at(positions)
            num_tokens = self.store.num_targets(samples).reshape(num_steps, batch).sum(axis=1).tolist()
            rows = zip(positions.reshape(num_steps, batch), samples.reshape(num_steps, batch), num_tokens, strict=True)
            self._planned.clear()
            self._planned[first] = [StepPlan(*row) for row in rows]
        return self._planned[first][index - first]

    def num_tokens(self, first: int, last: int) -> int:
        """Of the steps with indices [first, last)."""
        return sum(self.step_plan(index).num_tokens for index in range(first, last))

    def samples_at(self, positions: Int64) -> Int64:
        """The run's order: the sample at each position."""
        if isinstance(self.store, StreamedStore):
            return self.store.order(self.seed, self.silo).samples_at(positions)
        ranked: tuple[Int64, ...] = ()
        if self.curriculum_stages > 1:
            assert isinstance(self.store, PackedStore), (
                "the config refuses what does not know how long its documents are"
            )
            ranked = self.store.by_length
        sizes = self.store.source_sizes
        return mixed_samples(positions, self.schedule, sizes, self.seed, self.silo, self.curriculum_stages, ranked)

    def read_ahead(self, step: StepPlan) -> None:
        """Has data that is not on this machine fetched while what is here is fed."""
        if isinstance(self.store, StreamedStore):
            order = self.store.order(self.seed, self.silo)
            self.store.read_ahead(order, int(step.positions[0]), step.samples)

    def digests_of(self, samples: Int64) -> UInt64:
        """The digest that each sample has when it is fed whole: what the audit compares with. A few MB at a time are read."""
        piece = max(1, _READ_TOKENS // self.store.sequence_length)
        digests = np.empty(len(samples), dtype=np.uint64)
        for start in range(0, len(samples), piece):
            part = samples[start : start + piece]
            digests[start : start + piece] = sample_digests(part, *self.store.read(part))
        return digests

    def micro_batches(self, step: StepPlan, rank: int) -> Iterator[MicroBatch]:
        """The rank's blocks of a step; surplus blocks hold padding only."""
        for block in self.plan.blocks_of(rank):
            slots = self.plan.slots_of(block)
            samples = step.samples[slots.start : slots.stop]
            yield read_block(self.store, block, samples, self.plan.micro_batch_size, self.document_mask)

    def heldout_blocks(self, store: SequenceStore, num_sequences: int, rank: int) -> Iterator[MicroBatch]:
        """The rank's blocks of the first `num_sequences` held-out sequences (all when 0), in order, a mixture's sources in turns."""
        samples = interleaved(self.schedule, store.source_sizes, num_sequences or store.num_sequences)
        dealt = BatchPlan.of(len(samples), self.plan.micro_batch_size, self.plan.world_size)
        for block in dealt.blocks_of(rank):
            slots = dealt.slots_of(block)
            part = samples[slots.start : slots.stop]
            yield read_block(store, block, part, dealt.micro_batch_size, self.document_mask)

    def with_wrong_sample(self, step: StepPlan, rank: int) -> StepPlan:
        """An injected fault: in place of one sample of the rank, the next one of the corpus with as many tokens. Raises LookupError
        where there is none, or the rank is fed nothing."""
        num_targets = self.store.num_targets(np.arange(self.store.num_sequences))
        samples = step.samples.copy()
        for slot in (slot for block in self.plan.blocks_of(rank) for slot in self.plan.slots_of(block)):
            alike = np.flatnonzero(num_targets == num_targets[samples[slot]])
            if len(alike) > 1:
                samples[slot] = alike[(np.searchsorted(alike, samples[slot]) + 1) % len(alike)]
                return replace(step, samples=samples)
        raise LookupError(f"wrong_sample: no other sample has as many tokens as one of rank {rank}'s")


def read_block(
    store: SequenceStore, block: int, samples: Int64, micro_batch_size: int, document_mask: bool = False
) -> MicroBatch:
    """Sequences `samples` as one block, padded to `micro_batch_size` with sequences that no loss sees."""
    count = len(samples)
    input_ids, labels = store.read(samples)
    if count < micro_batch_size:
        padding = (0, micro_batch_size - count), (0, 0)
        input_ids, labels = np.pad(input_ids, padding), np.pad(labels, padding, constant_values=IGNORED_LABEL)
    inputs = {"input_ids": input_ids}
    if document_mask:
        # transformers takes a position that does not follow the one before for the start of another document.
        inputs["position_ids"] = np.tile(np.arange(store.sequence_length), (micro_batch_size, 1))
        inputs["position_ids"][:count] = store.position_ids(samples)
    return MicroBatch(
        block=block,
        inputs=inputs,
        labels=labels,
        num_sequences=count,
        num_tokens=int(np.count_nonzero(labels != IGNORED_LABEL)),
        digest=combine(sample_digests(samples, input_ids[:count], labels[:count])) if count else 0,
    )
