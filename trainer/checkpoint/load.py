"""Loading any checkpoint or snapshot on any world size and ZeRO stage, by byte ranges, with proof."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from zerofleet.trainer.checkpoint.adapters import DTYPE_NAMES, MOMENTS, Adapter, Slot
from zerofleet.trainer.checkpoint.commit import partial_digests
from zerofleet.trainer.checkpoint.format import DamagedFile, Manifest, Wanted
from zerofleet.trainer.checkpoint.fragments import DTYPES, MASTER, VALUE, FragmentKey
from zerofleet.trainer.checkpoint.save import key_of, saved_slots, to_numpy
from zerofleet.trainer.errors import CheckpointUnusable, UserError, ZerofleetError
from zerofleet.trainer.exchange import agree
from zerofleet.trainer.run_folder import CheckpointId

STAGED_BYTES = 256 * 1024 * 1024
"""On its way to a device, this much of the state is in the host's memory at a time."""


class Reader(Protocol):
    """Where a state is read from: reader.CheckpointReader, or memory.SnapshotReader."""

    manifest: Manifest

    def partial_digests(self, rank: int, world_size: int) -> dict[str, int] | None:
        """What this rank's share of the files adds to the digests; None when the manifest holds them."""

    def fill(self, wanted: Sequence[Wanted], alive: Callable[[], None]) -> None:
        """Reads all that is wanted into place. Raises DamagedFile."""


def load(
    open_reader: Callable[[], Reader],
    checkpoint: CheckpointId,
    adapter: Adapter,
    fingerprints: dict[str, str],
    device: torch.device,
    alive: Callable[[], None],
    weights_only: bool = False,
) -> Manifest:
    """Restores this rank's fragments and proves the whole state by its digests. Collective.

    `weights_only` (init_from) takes masters and buffers, leaves the optimizer and counters fresh, and does not compare
    the data. Raises CheckpointUnusable on every rank when any byte, fragment or digest is wrong; UserError when the
    checkpoint belongs to another model, tokenizer, corpus, seed or global batch; SnapshotUnreachable when a node that holds a part of it cannot be reached.
    """
    problem: ZerofleetError | None = None
    manifest: Manifest | None = None
    digests: dict[str, int] | None = None
    try:
        reader = open_reader()
        manifest = reader.manifest
        _same_job(manifest, adapter, fingerprints, weights_only)
        _fill(reader, adapter, weights_only, alive)
        digests = reader.partial_digests(dist.get_rank(), dist.get_world_size())
    except DamagedFile as error:
        problem = CheckpointUnusable(checkpoint.step, checkpoint.attempt, str(error))
    except ZerofleetError as error:
        problem = error
    agree(problem)
    assert manifest is not None
    if digests is not None:
        manifest = replace(manifest, digests=sum_digests(digests, adapter, device))
    adapter.refresh()
    if not weights_only:
        adapter.set_scalars(manifest.scalars)
    _prove(manifest, checkpoint, adapter, device, weights_only, alive)
    return manifest


def sum_digests(parts: dict[str, int], adapter: Adapter, device: torch.device) -> dict[str, str]:
    """`kind/name` to the digest of the whole logical tensor, from every rank's part; the same on all ranks. Collective."""
    labels = sorted(f"{kind}/{name}" for name, tensor in adapter.tensors().items() for kind in tensor.kinds)
    sums = np.array([parts.get(label, 0) for label in labels], np.uint64)
    # int64 addition wraps around like uint64's.
    total = torch.from_numpy(sums.view(np.int64)).to(device)
    dist.all_reduce(total)
    values = total.cpu().numpy().view(np.uint64).tolist()
    return {label: f"{value:016x}" for label, value in zip(labels, values, strict=True)}


def _same_job(manifest: Manifest, adapter: Adapter, fingerprints: dict[str, str], weights_only: bool) -> None:
    wanted = adapter.tensors()
    if missing := sorted(set(wanted) ^ set(manifest.tensors)):
        raise UserError(
            f"the checkpoint of step {manifest.step} is of another model: {len(missing)} tensors are in one of them only "
            f"({', '.join(missing[:3])}, ...)"
        )
    for name, tensor in wanted.items():
        if tensor.shape != manifest.tensors[name].shape:
            raise UserError(
                f"the checkpoint of step {manifest.step} is of another model: {name} has shape {manifest.tensors[name].shape}, not {tensor.shape}"
            )
    if weights_only:
        return
    for name, tensor in wanted.items():
        for kind in set(MOMENTS) & tensor.kinds.keys() & manifest.tensors[name].kinds.keys():
            if (saved := manifest.tensors[name].kinds[kind]) != (mine := tensor.kinds[kind]):
                raise UserError(
                    f"the moments in the checkpoint of step {manifest.step} are {saved} and this run's are {mine}: set train.moments_precision as it "
                    "was, or start a new run from its weights with run.init_from"
                )
    for what in ("data", "tokenizer", "model", "job"):
        if manifest.fingerprints.get(what) != fingerprints[what]:
            raise UserError(
                f"the {what} changed since the checkpoint of step {manifest.step} (fingerprint {manifest.fingerprints.get(what)}, now "
                f"{fingerprints[what]}): a run goes on with the {what} it began with. Restore it, or start a new run with run.init_from"
            )


def _fill(reader: Reader, adapter: Adapter, weights_only: bool, alive: Callable[[], None]) -> None:
    """Straight into the slots that lie in the host's memory; by way of a copy, some at a time, into those that do not."""
    slots = [slot for slot in adapter.slots() if not weights_only or slot.kind in (MASTER, VALUE)]
    direct = [slot for slot in slots if slot.view.is_cpu]
    reader.fill([_wanted(slot, to_numpy(slot.view)) for slot in direct], alive)
    for batch in _batches([slot for slot in slots if not slot.view.is_cpu]):
        wanted = [_wanted(slot, np.empty(slot.view.numel(), DTYPES[DTYPE_NAMES[slot.view.dtype]])) for slot in batch]
        reader.fill(wanted, alive)
        for slot, each in zip(batch, wanted, strict=True):
            slot.view.view(torch.uint8).copy_(torch.from_numpy(each.target.view(np.uint8)))


def _wanted(slot: Slot, target: npt.NDArray[np.generic]) -> Wanted:
    return Wanted(slot.name, slot.kind, slot.start, target)


def _batches(slots: Sequence[Slot]) -> Iterator[list[Slot]]:
    """Of about STAGED_BYTES each."""
    batch: list[Slot] = []
    for slot in slots:
        batch.append(slot)
        if sum(each.view.nbytes for each in batch) >= STAGED_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch


def _prove(
    manifest: Manifest,
    checkpoint: CheckpointId,
    adapter: Adapter,
    device: torch.device,
    weights_only: bool,
    alive: Callable[[], None],
) -> None:
    found = sum_digests(partial_digests(_held_by(adapter, alive)), adapter, device)
    wrong = [
        label
        for label, value in found.items()
        if (not weights_only or label.startswith((MASTER, VALUE))) and manifest.digests[label] != value
    ]
    problem: ZerofleetError | None = None
    if wrong:
        problem = CheckpointUnusable(
            checkpoint.step,
            checkpoint.attempt,
            f"the digests of {len(wrong)} tensors are not the saved ones ({', '.join(wrong[:3])})",
        )
    else:
        try:
            adapter.check_fragments()
        except ZerofleetError as error:
            problem = error
    agree(problem)


def _held_by(adapter: Adapter, alive: Callable[[], None]) -> Iterator[tuple[FragmentKey, npt.NDArray[np.generic]]]:
    """What this rank would save, one fragment after the other: on a GPU no more than that is copied to the host at a time."""
    for slot in saved_slots(adapter):
        alive()
        yield key_of(slot), to_numpy(slot.saved_view())
