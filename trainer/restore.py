"""What a rank starts from: the agents' snapshots, a checkpoint, another run's weights, or nothing."""

from __future__ import annotations

import contextlib
import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zerofleet.trainer.checkpoint.adapters import Adapter
from zerofleet.trainer.checkpoint.format import Manifest
from zerofleet.trainer.checkpoint.load import load
from zerofleet.trainer.checkpoint.memory import SnapshotReader
from zerofleet.trainer.checkpoint.reader import CheckpointReader
from zerofleet.trainer.data.quarantine import below, named
from zerofleet.trainer.errors import CheckpointUnusable
from zerofleet.trainer.init_from import resolve_init_from
from zerofleet.trainer.reporter import Reporter
from zerofleet.trainer.run_folder import AttemptRecord, CheckpointId, RunFolder
from zerofleet.trainer.world import World


@dataclass(frozen=True)
class Restore:
    """Everything that a load needs. Collective, as `load` is."""

    run: RunFolder
    storage_url: str
    world: World
    adapter: Adapter
    fingerprints: dict[str, str]
    device: torch.device
    reporter: Reporter
    snapshots: Path | None

    def start_of(self, record: AttemptRecord) -> Manifest | None:
        """Loads what an attempt's record names. Returns the state's description, None for initial or another run's weights;
        tells the restored state on rank 0. Raises what `load` raises, and CheckpointUnusable when the state's steps left out
        other samples than the attempt's would."""
        start = time.time()
        if record.checkpoint_attempt is not None:
            source = CheckpointId(record.start_step, record.checkpoint_attempt, self.world.silo)
            manifest = self._from_memory(source) if record.from_memory else self._from_storage(self.run, source)
            _same_past(manifest, record)
            self.reporter.step = manifest.step
            self._tell(
                start,
                manifest,
                from_attempt=source.attempt,
                from_memory=record.from_memory,
                world_size=manifest.world_size,
                zero_stage=manifest.zero_stage,
            )
            return manifest
        if record.init_from:
            run, source = resolve_init_from(record.init_from, self.storage_url)
            manifest = self._from_storage(run, source, weights_only=True)
            self._tell(start, manifest, init_from=f"{run.name}@{source.step}")
        return None

    def _from_storage(self, run: RunFolder, source: CheckpointId, weights_only: bool = False) -> Manifest:
        open_reader = functools.partial(CheckpointReader, run.storage, source)
        return load(open_reader, source, self.adapter, self.fingerprints, self.device, self._alive, weights_only)

    def _from_memory(self, source: CheckpointId) -> Manifest:
        assert self.snapshots is not None
        folder = self.snapshots
        before = next(record for record in self.run.attempts() if record.attempt == source.attempt)
        with contextlib.ExitStack() as pinned:

            def open_reader() -> SnapshotReader:
                reader = SnapshotReader(folder, source, before.world_size, before.token)
                pinned.callback(reader.close)
                if self.world.rank == 0:
                    self.reporter.remember(reader.events)
                return reader

            return load(open_reader, source, self.adapter, self.fingerprints, self.device, self._alive)

    def _alive(self) -> None:
        self.reporter.alive("load")

    def _tell(self, start: float, manifest: Manifest, **data: Any) -> None:
        if self.world.rank == 0:
            self.reporter.event("loaded", "load", start, time.time() - start, digests=len(manifest.digests), **data)


def _same_past(manifest: Manifest, record: AttemptRecord) -> None:
    """Fencing lets no other state through; this proves that no sample is lost or fed twice."""
    its, mine = (below(quarantine, manifest.position) for quarantine in (manifest.quarantine, record.quarantine))
    if its != mine:
        reason = f"its steps left out {named(its)}, those of attempt {record.attempt} leave out {named(mine)}"
        raise CheckpointUnusable(manifest.step, manifest.attempt, reason)
