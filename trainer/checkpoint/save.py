"""Saving: fragments to a sink, digests over all ranks, and the commit, which is the manifest's write."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from zerofleet.trainer.checkpoint.adapters import DTYPE_NAMES, Adapter
from zerofleet.trainer.checkpoint.format import Manifest, RankFile, write_rank_file
from zerofleet.trainer.checkpoint.fragments import FragmentKey, digest
from zerofleet.trainer.checkpoint.retention import to_delete
from zerofleet.trainer.checkpoint.select import verify_checkpoint
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.errors import CheckpointUnusable, StorageError, Superseded
from zerofleet.trainer.run_folder import CheckpointId, RunFolder
from zerofleet.trainer.world import World

Fragments = Sequence[tuple[FragmentKey, npt.NDArray[np.generic]]]


class SnapshotSink(Protocol):
    """Takes one rank's fragments of one checkpoint and says where they went."""

    def write(self, checkpoint: CheckpointId, fragments: Fragments) -> RankFile: ...


@dataclass(frozen=True)
class FileSink:
    """Writes straight to storage."""

    run: RunFolder
    rank: int
    world_size: int
    alive: Callable[[], None] = lambda: None

    def write(self, checkpoint: CheckpointId, fragments: Fragments) -> RankFile:
        return write_rank_file(self.run.storage, checkpoint, self.rank, self.world_size, fragments, self.alive)


def to_numpy(tensor: torch.Tensor) -> npt.NDArray[np.generic]:
    """The tensor's bytes in the numpy dtype that carries them (fragments.DTYPES); shares memory on the CPU."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    elif tensor.dtype == torch.bool:
        tensor = tensor.view(torch.uint8)
    return tensor.numpy()


def fragments_of(adapter: Adapter) -> list[tuple[FragmentKey, npt.NDArray[np.generic]]]:
    """What this rank saves."""
    return [
        (
            FragmentKey(s.name, s.kind, s.save_start, s.save_end - s.save_start, DTYPE_NAMES[s.view.dtype]),
            to_numpy(s.saved_view()),
        )
        for s in adapter.slots()
        if s.save_end > s.save_start
    ]


def digests_over_ranks(
    adapter: Adapter, fragments: Fragments, device: torch.device, alive: Callable[[], None]
) -> dict[str, str]:
    """`kind/name` to the digest of the whole logical tensor, the same on all ranks. Collective."""
    labels = sorted(f"{kind}/{name}" for name, tensor in adapter.tensors().items() for kind in tensor.kinds)
    index = {label: i for i, label in enumerate(labels)}
    sums = np.zeros(len(labels), np.uint64)
    with np.errstate(over="ignore"):
        for key, values in fragments:
            alive()
            sums[index[f"{key.kind}/{key.name}"]] += np.uint64(digest(values, key.start))
    # int64 addition wraps around like uint64's.
    total = torch.from_numpy(sums.view(np.int64).copy()).to(device)
    dist.all_reduce(total)
    return {
        label: f"{value:016x}"
        for label, value in zip(labels, total.cpu().numpy().view(np.uint64).tolist(), strict=True)
    }


def agree(problem: Exception | None) -> None:
    """Raises on every rank what any rank ran into, so that none is left waiting. Collective."""
    problems: list[Exception | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    for found in problems:
        if found is not None:
            raise found


def save(
    config: TrainConfig,
    run: RunFolder,
    world: World,
    adapter: Adapter,
    sink: SnapshotSink,
    step: int,
    fingerprints: dict[str, str],
    device: torch.device,
    before_commit: Callable[[], None],
    alive: Callable[[], None],
) -> Manifest:
    """Saves the state after `step` steps and commits it. Collective; `before_commit()` runs on rank 0 before the manifest,
    `alive()` on every rank now and then.

    Raises StorageError on every rank when any could not write.
    """
    checkpoint = CheckpointId(step, world.attempt, world.silo)
    fragments = fragments_of(adapter)
    problem: Exception | None = None
    rank_file: RankFile | None = None
    try:
        rank_file = sink.write(checkpoint, fragments)
    except (StorageError, FileExistsError) as error:
        problem = error
    digests = digests_over_ranks(adapter, fragments, device, alive)
    try:
        agree(problem)
    except StorageError:
        # All ranks have written by now. What is there is of no use, and the disk may be full.
        if world.rank == 0:
            run.storage.remove(checkpoint.folder)
        raise
    files: list[RankFile] = [None] * world.world_size  # type: ignore[list-item]
    dist.all_gather_object(files, rank_file)
    manifest = Manifest(
        step=step,
        attempt=world.attempt,
        silo=world.silo,
        world_size=world.world_size,
        zero_stage=config.train.zero_stage,
        precision=config.train.precision,
        position=step * config.train.global_batch_size,
        quarantine=[],
        scalars=adapter.scalars(),
        tensors=adapter.tensors(),
        digests=digests,
        rank_files=files,
        fingerprints=fingerprints,
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in ("zerofleet", "torch", "deepspeed", "transformers")},
        },
        created_at=time.time(),
    )
    if world.rank == 0:
        problem = _commit(config, run, checkpoint, manifest, before_commit)
    agree(problem if world.rank == 0 else None)
    return manifest


def _commit(
    config: TrainConfig, run: RunFolder, checkpoint: CheckpointId, manifest: Manifest, before_commit: Callable[[], None]
) -> Exception | None:
    try:
        _refuse_to_follow(run, checkpoint)
        before_commit()
        run.storage.create(checkpoint.manifest, manifest.to_bytes())
        apply_retention(config, run, checkpoint)
    except (StorageError, FileExistsError, CheckpointUnusable, Superseded) as error:
        return error
    return None


def _refuse_to_follow(run: RunFolder, checkpoint: CheckpointId) -> None:
    """A newer attempt owns the run: what this one still does cannot count. Raises Superseded."""
    newest = max((record.attempt for record in run.attempts()), default=checkpoint.attempt)
    if newest > checkpoint.attempt:
        raise Superseded(checkpoint.attempt, newest)


def apply_retention(config: TrainConfig, run: RunFolder, newest: CheckpointId) -> None:
    """Deletes what the policy lets go, after the newest checkpoint has been read back. Raises CheckpointUnusable when it cannot.

    What older attempts left incomplete goes too. A rank whose attempt has been succeeded deletes nothing: its successor may
    have started from what it would delete.
    """
    verify_checkpoint(run, newest)
    attempts = run.attempts()
    if attempts and attempts[-1].attempt > newest.attempt:
        return
    folders = run.checkpoint_folders(newest.silo)
    complete = [c for c in folders if not run.fenced(c, attempts) and run.storage.exists(c.manifest)]
    leftovers = [c for c in folders if c not in complete and c.attempt < newest.attempt]
    for old in [*to_delete(complete, config.checkpoint.keep_last, config.checkpoint.keep_every_steps), *leftovers]:
        # The manifest goes first: a deletion that is cut short leaves no checkpoint that claims to be whole.
        run.storage.remove(old.manifest)
        run.storage.remove(old.folder)
        for parent in (old.folder.rpartition("/")[0], f"checkpoints/step-{old.step:08d}"):
            if not run.storage.list(parent):
                run.storage.remove(parent)
