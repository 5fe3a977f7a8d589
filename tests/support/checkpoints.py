"""Small checkpoints and snapshots without a model: one tensor `w` of a hundred numbers, dealt to ranks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from zerofleet.trainer.checkpoint.buffer_set import BufferSet
from zerofleet.trainer.checkpoint.commit import Draft, Written, partial_digests
from zerofleet.trainer.checkpoint.format import Scalars, write_rank_file
from zerofleet.trainer.checkpoint.fragments import FragmentKey, Tensor, equal_part
from zerofleet.trainer.checkpoint.snapshot import SnapshotMeta
from zerofleet.trainer.events import Event
from zerofleet.trainer.run_folder import CheckpointId, RunFolder

VALUES = np.arange(100, dtype=np.float32)


def draft(step: int) -> Draft:
    return Draft(
        zero_stage=1,
        precision="fp32",
        position=8 * step,
        quarantine=[],
        scalars=Scalars([step, step], engine={"global_steps": step}),
        tensors={"w": Tensor((10, 10), {"master": "F32"}, ("tied",))},
        fingerprints={"data": "d"},
        versions={"zerofleet": "0"},
    )


def fragment(rank: int, world_size: int) -> tuple[FragmentKey, np.ndarray]:
    start, end = equal_part(100, rank, world_size)
    return FragmentKey("w", "master", start, end - start, "F32"), VALUES[start:end]


def written(run: RunFolder, checkpoint: CheckpointId, rank: int, world_size: int = 2) -> Written:
    """Writes one rank's file."""
    fragments = [fragment(rank, world_size)]
    rank_file = write_rank_file(run.storage, checkpoint, rank, world_size, fragments)
    digests = partial_digests(fragments)
    return Written(checkpoint, rank, world_size, rank_file, digests, None if rank else draft(checkpoint.step))


def snapshot(folder: Path, checkpoint: CheckpointId, rank: int, world_size: int = 2, token: str = "t") -> Path:
    """Fills one buffer of a rank. Rank 0 remembers the results of this step and of the one before."""
    key, values = fragment(rank, world_size)
    content = None if rank else draft(checkpoint.step).to_dict()
    steps = () if rank else (checkpoint.step - 1, checkpoint.step)
    events = [asdict(Event("step", checkpoint.attempt, rank, step, "step", 100.0)) for step in steps]
    who = (checkpoint.step, checkpoint.attempt, checkpoint.silo, rank, world_size)
    meta = SnapshotMeta(*who, token, draft=content, events=events)
    with BufferSet(folder, rank, 3).fill(meta, [key]) as filling:
        assert filling is not None
        filling.pieces[0][:] = values.view(np.uint8)
    return filling.path
