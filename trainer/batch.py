"""The batch rule: one global batch, cut into fixed blocks, dealt to any number of ranks without flooring anything.

The global batch of B sequences is cut into blocks of `micro_batch_size`; block b goes to rank b mod W as its micro-step
b // W. Every rank runs the same number of micro-steps, since collectives need all ranks; only the last block is padded,
and blocks past the last one have weight 0. The sum over blocks is the same for every W up to the order of summation.
"""

from __future__ import annotations

from dataclasses import dataclass

import xxhash


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is dealt at one world size."""

    global_batch_size: int
    micro_batch_size: int
    world_size: int

    @staticmethod
    def of(global_batch_size: int, micro_batch_size: int, world_size: int) -> BatchPlan:
        assert min(global_batch_size, micro_batch_size, world_size) >= 1
        return BatchPlan(global_batch_size, micro_batch_size, world_size)

    @property
    def num_blocks(self) -> int:
        """Blocks that hold sequences."""
        return -(-self.global_batch_size // self.micro_batch_size)

    @property
    def gradient_accumulation_steps(self) -> int:
        """Micro-steps of every rank in one step."""
        return -(-self.num_blocks // self.world_size)

    @property
    def num_surplus_blocks(self) -> int:
        """Blocks of weight 0 that keep the ranks in step."""
        return self.gradient_accumulation_steps * self.world_size - self.num_blocks

    @property
    def num_padded_sequences(self) -> int:
        """Sequences of weight 0 in the last block."""
        return self.num_blocks * self.micro_batch_size - self.global_batch_size

    def blocks_of(self, rank: int) -> list[int]:
        """The block of each of the rank's micro-steps; a number >= num_blocks is a surplus block."""
        return [micro_step * self.world_size + rank for micro_step in range(self.gradient_accumulation_steps)]

    def slots_of(self, block: int) -> range:
        """Indices into the global batch (0 to B - 1) of a block; empty for a surplus block."""
        start = block * self.micro_batch_size
        return range(min(start, self.global_batch_size), min(start + self.micro_batch_size, self.global_batch_size))

    def describe(self, sequence_length: int) -> str:
        """The arithmetic, for the user to check before training."""
        tokens = self.global_batch_size * sequence_length
        text = (
            f"global batch {self.global_batch_size} sequences x {sequence_length} tokens = {tokens:,} tokens per step: "
            f"{self.num_blocks} blocks of {self.micro_batch_size} over {self.world_size} ranks = "
            f"{self.gradient_accumulation_steps} micro-steps per rank"
        )
        spare = self.num_surplus_blocks * self.micro_batch_size + self.num_padded_sequences
        if spare:
            share = spare / (spare + self.global_batch_size)
            text += (
                f"; {self.num_padded_sequences} padded sequences and {self.num_surplus_blocks} surplus blocks of weight 0 "
                f"({share:.1%} of the compute)"
            )
        return text


def block_seed(seed: int, step: int, block: int) -> int:
    """Seed of one block's dropout, in [0, 2^63): a function of the block, so that no RNG state is ever stored."""
    return xxhash.xxh3_64_intdigest(f"block/{seed}/{step}/{block}".encode()) >> 1


def module_seed(seed: int, module_name: str) -> int:
    """Seed of one module's initial weights, in [0, 2^63)."""
    return xxhash.xxh3_64_intdigest(f"init/{seed}/{module_name}".encode()) >> 1
