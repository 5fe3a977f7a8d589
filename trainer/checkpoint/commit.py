"""The commit: what the ranks have written becomes a checkpoint when its manifest is there. Knows neither torch nor DeepSpeed.

Plain functions: rank 0 calls them under torchrun, the driver's committer where there are node agents.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from zerofleet.trainer.checkpoint.format import FIRST_PROBE_TOKENS, Manifest, RankFile, Scalars, tensors_of
from zerofleet.trainer.checkpoint.fragments import FragmentKey, Tensor, add_digests, digest
from zerofleet.trainer.checkpoint.retention import to_delete
from zerofleet.trainer.checkpoint.select import verify_checkpoint
from zerofleet.trainer.config import CheckpointConfig
from zerofleet.trainer.errors import Superseded
from zerofleet.trainer.run_folder import CheckpointId, RunFolder

Fragments = Sequence[tuple[FragmentKey, npt.NDArray[np.generic]]]


@dataclass(frozen=True)
class Draft:
    """What one rank knows of a manifest without the others: all but digests and rank files."""

    zero_stage: int
    precision: str
    position: int
    quarantine: list[list[int]]
    scalars: Scalars
    tensors: dict[str, Tensor]
    fingerprints: dict[str, str]
    versions: dict[str, str]
    recent_losses: list[float] = field(default_factory=list)
    probe_loss: float | None = None
    probe_tokens: int = FIRST_PROBE_TOKENS

    def to_dict(self) -> dict[str, Any]:
        tensors = {name: vars(tensor) for name, tensor in self.tensors.items()}
        return {**vars(self), "scalars": asdict(self.scalars), "tensors": tensors}

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> Draft:
        parts = {"tensors": tensors_of(fields["tensors"]), "scalars": Scalars(**fields["scalars"])}
        return Draft(**{**fields, **parts})


@dataclass(frozen=True)
class Written:
    """One rank's file in storage, and what its fragments add to the digests (`kind/name` to a number)."""

    checkpoint: CheckpointId
    rank: int
    world_size: int
    rank_file: RankFile
    digests: dict[str, int]
    draft: Draft | None = None
    """Rank 0's."""
    results: list[dict[str, Any]] = field(default_factory=list)
    """Rank 0's: the newest steps' events, which nobody may have heard yet; to be written down before the commit."""

    def to_dict(self) -> dict[str, Any]:
        """As an event carries it."""
        draft = self.draft.to_dict() if self.draft else None
        parts = {"checkpoint": asdict(self.checkpoint), "rank_file": asdict(self.rank_file), "draft": draft}
        return {**vars(self), **parts}

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> Written:
        draft = Draft.from_dict(fields["draft"]) if fields["draft"] else None
        parts = {"checkpoint": CheckpointId(**fields["checkpoint"]), "rank_file": RankFile(**fields["rank_file"])}
        return Written(**{**fields, **parts, "draft": draft})


def partial_digests(fragments: Iterable[tuple[FragmentKey, npt.NDArray[np.generic]]]) -> dict[str, int]:
    """`kind/name` to what these fragments add to the digest of the whole tensor."""
    sums: dict[str, int] = {}
    for key, values in fragments:
        label = f"{key.kind}/{key.name}"
        sums[label] = add_digests(sums.get(label, 0), digest(values, key.start))
    return sums


def add_parts(parts: Iterable[dict[str, int]]) -> dict[str, int]:
    """The sums of several ranks' parts."""
    sums: dict[str, int] = {}
    for part in parts:
        for label, value in part.items():
            sums[label] = add_digests(sums.get(label, 0), value)
    return sums


def assemble(written: Sequence[Written]) -> Manifest:
    """The manifest of a checkpoint that every rank has written."""
    ordered = sorted(written, key=lambda part: part.rank)
    first = ordered[0]
    assert first.draft is not None and [part.rank for part in ordered] == list(range(first.world_size))
    return Manifest(
        step=first.checkpoint.step,
        attempt=first.checkpoint.attempt,
        silo=first.checkpoint.silo,
        world_size=first.world_size,
        digests={label: f"{value:016x}" for label, value in sorted(add_parts(p.digests for p in ordered).items())},
        rank_files=[part.rank_file for part in ordered],
        created_at=time.time(),
        **vars(first.draft),
    )


def commit(config: CheckpointConfig, run: RunFolder, manifest: Manifest, before_commit: Callable[[], None]) -> None:
    """Makes a checkpoint exist, then deletes what the retention policy lets go. `before_commit` makes durable what must be
    before it (the ledger).

    Raises Superseded when a newer attempt started before its step, StorageError, CheckpointUnusable when it cannot be read
    back.
    """
    checkpoint = CheckpointId(manifest.step, manifest.attempt, manifest.silo)
    attempts = run.attempts()
    if run.fenced(checkpoint, attempts):
        raise Superseded(checkpoint.attempt, max(record.attempt for record in attempts))
    before_commit()
    with contextlib.suppress(FileExistsError):  # an earlier try only seemed to fail; what is there is verified below
        run.storage.create(checkpoint.manifest, manifest.to_bytes())
    apply_retention(config, run, checkpoint)


def apply_retention(config: CheckpointConfig, run: RunFolder, newest: CheckpointId) -> None:
    """Deletes what the policy lets go, after the newest checkpoint has been read back. Raises CheckpointUnusable when it cannot.

    What older attempts left incomplete goes too: their saves are settled before those of a later attempt. Whoever has been
    succeeded deletes nothing: the successor may have started from what it would delete.
    """
    verify_checkpoint(run, newest)
    attempts = run.attempts()
    if attempts and attempts[-1].attempt > newest.attempt:
        return
    folders = run.checkpoint_folders(newest.silo)
    complete = [c for c in folders if not run.fenced(c, attempts) and run.storage.exists(c.manifest)]
    leftovers = [c for c in folders if c not in complete and c.attempt < newest.attempt]
    for old in [*to_delete(complete, config.keep_last, config.keep_every_steps), *leftovers]:
        # The manifest goes first: a deletion that is cut short leaves no checkpoint that claims to be whole.
        run.storage.remove(old.manifest)
        run.storage.remove(old.folder)
        for parent in (old.folder.rpartition("/")[0], f"checkpoints/step-{old.step:08d}"):
            if not run.storage.list(parent):
                run.storage.remove(parent)
