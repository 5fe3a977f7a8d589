"""The probe: the loss on a few fixed tokens, which every rank computes alone before a save, and again after a load.

Digests prove that the state is the saved one; the probe proves that code, libraries and hardware still make the same of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from zerofleet.trainer.checkpoint.format import Manifest
from zerofleet.trainer.data.cache import DataCache
from zerofleet.trainer.data.feed import MicroBatch, read_block
from zerofleet.trainer.data.sequences import IGNORED_LABEL
from zerofleet.trainer.errors import UserError, WrongProbe

PROBE_TOKENS = 16
"""Of one sequence: enough for every weight to take part, and too few to be felt beside a save."""
TOLERANCES: dict[str, float] = {"fp32": 1e-4, "fp16": 1e-3, "bf16": 5e-3}
"""Relative. About the unit roundoff of what is multiplied (fp16 2^-11, bf16 2^-8; fp32 as a device that multiplies in TF32, 2^-11,
makes of it after averaging): another kernel or processor stays below, another formula does not."""


def probe_batch(cache: DataCache, document_mask: bool, num_tokens: int = PROBE_TOKENS) -> MicroBatch:
    """The beginning of the first held-out sequence, or of the first training sequence where nothing is held out: a block of one
    sequence of at most `num_tokens` tokens, the same on every rank and in every attempt."""
    store = cache.heldout if cache.heldout.num_sequences else cache.train
    whole = read_block(store, 0, np.zeros(1, dtype=np.int64), 1, document_mask)
    inputs = {name: values[:, :num_tokens] for name, values in whole.inputs.items()}
    labels = whole.labels[:, :num_tokens]
    return replace(whole, inputs=inputs, labels=labels, num_tokens=int((labels != IGNORED_LABEL).sum()))


def check_probe(loss: float, manifest: Manifest, versions: dict[str, str], device: torch.device) -> None:
    """Compares this rank's loss after a load with the one that the checkpoint holds, if it does. Collective.

    Raises on every rank: WrongProbe when some ranks find another loss, UserError when all do.
    """
    if manifest.probe_loss is None:
        return
    mine = torch.tensor([loss], dtype=torch.float64, device=device)
    gathered = torch.empty(dist.get_world_size(), dtype=torch.float64, device=device)
    dist.all_gather_single(gathered, mine)
    judge_probe(manifest, gathered.tolist(), versions)


def judge_probe(manifest: Manifest, losses: Sequence[float], versions: dict[str, str]) -> None:
    """`losses` by rank, those of one moment. Raises as `check_probe` does."""
    saved = manifest.probe_loss
    assert saved is not None
    tolerance = TOLERANCES[manifest.precision]
    # Written so that a loss that is not a number is odd.
    odd = [rank for rank, loss in enumerate(losses) if not abs(loss - saved) <= tolerance * abs(saved)]
    if not odd:
        return
    if len(odd) < len(losses):
        raise WrongProbe(manifest.step, odd, losses[odd[0]], saved)
    changed = changed_versions(manifest, versions)
    raise UserError(
        f"the weights are bitwise those of step {manifest.step}, but the probe loss is {losses[0]:.6g} where it was {saved:.6g} when they were "
        f"saved (tolerance {tolerance:g}, relative, in {manifest.precision}): this code or hardware computes something else "
        f"({changed or 'the versions are the same'}). Go on with what saved it, or begin a new run from its weights with run.init_from"
    )


def changed_versions(manifest: Manifest, versions: dict[str, str]) -> str:
    """What of the software is another than when this state was made; empty: nothing."""
    changed = {name: old for name, old in manifest.versions.items() if versions.get(name) != old}
    return "; ".join(f"{name} {old}, now {versions.get(name)}" for name, old in changed.items())


def other_code(manifest: Manifest, versions: dict[str, str]) -> dict[str, Any]:
    """What to tell, as an incident's data, of a state in memory that other software made, which has no probe to compare; empty: nothing."""
    if not (changed := changed_versions(manifest, versions)):
        return {}
    message = (
        f"step {manifest.step} was in memory, and other software made it ({changed}): nothing says whether this one computes the same. A durable "
        "checkpoint would"
    )
    return {"class": "version", "message": message}
