"""The one small collective of a step: control, counts, digest and loss of every rank, and the replica check."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass

import torch
import torch.distributed as dist
import xxhash

from zerofleet.trainer.data.feed import MicroBatch
from zerofleet.trainer.data.ledger import LedgerEntry, rank_digests_of
from zerofleet.trainer.errors import DataError
from zerofleet.trainer.world import World


@dataclass
class StepShare:
    """What one rank contributes to a step."""

    control: int = 0
    num_sequences: int = 0
    num_tokens: int = 0
    digest: int = 0
    loss_sum: float = 0.0

    def add(self, batch: MicroBatch) -> None:
        """Counts what was fed."""
        self.num_sequences += batch.num_sequences
        self.num_tokens += batch.num_tokens
        self.digest = (self.digest + batch.digest) % 2**64


@dataclass(frozen=True)
class StepSum:
    """The sum over ranks; `control` is the strongest request of any."""

    control: int
    num_sequences: int
    num_tokens: int
    digest: int
    loss_sum: float
    rank_digests: tuple[int, ...] = ()
    """Each rank's own, in rank order."""

    def verify(self, step: int, num_sequences: int, num_tokens: int) -> None:
        """Raises DataError when the ranks together fed anything but the step's own sequences and tokens."""
        if (self.num_sequences, self.num_tokens) != (num_sequences, num_tokens):
            raise DataError(
                f"step {step} was fed {self.num_sequences} sequences with {self.num_tokens} tokens, the index says {num_sequences} "
                f"with {num_tokens}: the prepared data on some node differs. Remove that node's data cache and resume"
            )

    def ledger_entry(
        self, step: int, world: World, ranges: list[list[int]], data: str, micro_batch_size: int
    ) -> LedgerEntry:
        """What the ledger says of the step."""
        return LedgerEntry(
            step=step,
            attempt=world.attempt,
            silo=world.silo,
            ranges=ranges,
            num_sequences=self.num_sequences,
            num_tokens=self.num_tokens,
            digest=f"{self.digest:016x}",
            data=data,
            micro_batch_size=micro_batch_size,
            rank_digests=rank_digests_of(self.rank_digests),
        )


def agree(problem: Exception | None) -> None:
    """Raises on every rank what any rank ran into, so that none is left waiting. Collective."""
    problems: list[Exception | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    for found in problems:
        if found is not None:
            raise found


def agree_on(fingerprints: dict[str, str]) -> None:
    """Raises DataError on every rank when any rank's data, tokenizer, model or job differs from rank 0's. Collective."""
    found: list[dict[str, str]] = [{}] * dist.get_world_size()
    dist.all_gather_object(found, fingerprints)
    for what in fingerprints:
        if odd := [rank for rank, other in enumerate(found) if other[what] != found[0][what]]:
            raise DataError(
                f"rank {', '.join(map(str, odd))} has another {what} than rank 0 ({found[odd[0]][what]}, not {found[0][what]}): "
                "the files or the prepared data on its node differ. Make them the same, remove that node's data cache, and resume"
            )


def exchange(share: StepShare, device: torch.device, world_size: int) -> StepSum:
    """Gathers all shares and adds them in rank order, so that the sum is the same on every rank and in every run. Collective."""
    packed = struct.pack("<qqqQd", share.control, share.num_sequences, share.num_tokens, share.digest, share.loss_sum)
    mine = torch.frombuffer(bytearray(packed), dtype=torch.int64).to(device)
    gathered = torch.empty(world_size * mine.numel(), dtype=torch.int64, device=device)
    dist.all_gather_single(gathered, mine)
    rows = list(struct.iter_unpack("<qqqQd", gathered.cpu().numpy().tobytes()))
    return StepSum(
        control=max(row[0] for row in rows),
        num_sequences=sum(row[1] for row in rows),
        num_tokens=sum(row[2] for row in rows),
        digest=sum(row[3] for row in rows) % 2**64,
        loss_sum=sum(row[4] for row in rows),
        rank_digests=tuple(row[3] for row in rows),
    )


def replica_digest(model: torch.nn.Module) -> int:
    """xxh3-64 of the weights that forward uses, in [0, 2^63)."""
    hasher = xxhash.xxh3_64()
    for parameter in model.parameters():
        hasher.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return hasher.intdigest() >> 1


def odd_ranks(digest: int, device: torch.device, world_size: int) -> list[int]:
    """Ranks whose replica differs from the majority's; with no majority, all that differ from rank 0's. Collective."""
    mine = torch.tensor([digest], dtype=torch.int64, device=device)
    gathered = torch.empty(world_size, dtype=torch.int64, device=device)
    dist.all_gather_single(gathered, mine)
    digests = gathered.tolist()
    (common, count), *_ = Counter(digests).most_common(1)
    reference = common if count * 2 > world_size else digests[0]
    return [rank for rank, found in enumerate(digests) if found != reference]
