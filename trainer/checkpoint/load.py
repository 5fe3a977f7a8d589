"""Loading any checkpoint on any world size and ZeRO stage, by byte ranges, with proof."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from zerofleet.trainer.checkpoint.adapters import Adapter
from zerofleet.trainer.checkpoint.format import CheckpointReader, DamagedFile, Manifest
from zerofleet.trainer.checkpoint.fragments import MASTER
from zerofleet.trainer.checkpoint.save import agree, digests_over_ranks, fragments_of
from zerofleet.trainer.errors import CheckpointUnusable, UserError, ZerofleetError
from zerofleet.trainer.run_folder import CheckpointId, RunFolder


def load(
    run: RunFolder,
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
    checkpoint belongs to another model, tokenizer, corpus, seed or global batch.
    """
    problem: ZerofleetError | None = None
    manifest: Manifest | None = None
    try:
        reader = CheckpointReader(run.storage, checkpoint)
        manifest = reader.manifest
        _same_job(manifest, adapter, fingerprints, weights_only)
        _fill(reader, adapter, weights_only, alive)
    except DamagedFile as error:
        problem = CheckpointUnusable(checkpoint.step, checkpoint.attempt, str(error))
    except ZerofleetError as error:
        problem = error
    agree(problem)
    assert manifest is not None
    adapter.refresh()
    if not weights_only:
        adapter.set_scalars(manifest.scalars)
    _prove(manifest, checkpoint, adapter, device, weights_only, alive)
    return manifest


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
    for what in ("data", "tokenizer", "model", "job"):
        if manifest.fingerprints.get(what) != fingerprints[what]:
            raise UserError(
                f"the {what} changed since the checkpoint of step {manifest.step} (fingerprint {manifest.fingerprints.get(what)}, now "
                f"{fingerprints[what]}): a run goes on with the {what} it began with. Restore it, or start a new run with run.init_from"
            )


def _fill(reader: CheckpointReader, adapter: Adapter, weights_only: bool, alive: Callable[[], None]) -> None:
    for slot in adapter.slots():
        if weights_only and slot.kind in ("exp_avg", "exp_avg_sq"):
            continue
        alive()
        values = reader.read(slot.name, slot.kind, slot.start, slot.view.numel())
        slot.view.view(torch.uint8).copy_(torch.from_numpy(values.view(np.uint8)))


def _prove(
    manifest: Manifest,
    checkpoint: CheckpointId,
    adapter: Adapter,
    device: torch.device,
    weights_only: bool,
    alive: Callable[[], None],
) -> None:
    found = digests_over_ranks(adapter, fragments_of(adapter), device, alive)
    wrong = [
        label
        for label, value in found.items()
        if manifest.digests[label] != value and not (weights_only and not label.startswith((MASTER, "value")))
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
