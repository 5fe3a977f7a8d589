"""Damage to what a run keeps: its checkpoints in storage and its snapshots in memory. Local storage only."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

from zerofleet.cluster.snapshot_writer import remove_snapshots, snapshot_folder
from zerofleet.trainer.checkpoint.format import Manifest
from zerofleet.trainer.checkpoint.preamble import read_preamble
from zerofleet.trainer.checkpoint.snapshot import find_snapshots, open_snapshot
from zerofleet.trainer.run_folder import CheckpointId, RunFolder

COMMIT_TIMEOUT_S = 20.0
"""How long a save that is under way may take until what it writes can be damaged."""
ZOMBIE_AHEAD = 1000
"""Steps by which a zombie's checkpoint is newer than any of the run's own."""
_POLL_S = 0.01


def await_target(run: RunFolder, kind: str, step: int) -> None:
    """Returns when there is what a fault of this kind damages: saves of steps before `step` are committed, and there is an older
    checkpoint to fall back to; for a zombie, an attempt that was succeeded. `step` itself may be on its way too, and does not
    arrive as long as one of its ranks waits for this.

    Raises TimeoutError when it does not come to that: the fault would end the run, or prove nothing.
    """
    is_there, needs = _TARGETS[kind]
    deadline = time.monotonic() + COMMIT_TIMEOUT_S
    while not is_there(run, step):
        if time.monotonic() > deadline:
            raise TimeoutError(f"within {COMMIT_TIMEOUT_S:.0f} s run {run.name} had not what {kind} needs: {needs}")
        time.sleep(_POLL_S)


def _is_settled(run: RunFolder, step: int) -> bool:
    folders = [folder for folder in run.checkpoint_folders() if folder.step < step]
    return bool(folders) and run.storage.exists(folders[-1].manifest)


def _has_two_checkpoints(run: RunFolder, step: int) -> bool:
    return _is_settled(run, step) and len(run.checkpoints()) > 1


def _has_a_past(run: RunFolder, step: int) -> bool:
    return _is_settled(run, step) and len(run.attempts()) > 1


def _has_hashed_snapshots(run: RunFolder, step: int) -> bool:
    """Of all ranks, of the step before."""
    hashed: set[int] = set()
    world_size = 0
    for path, meta in find_snapshots(Path(snapshot_folder(run))):
        if meta.step == step - 1 and (snapshot := open_snapshot(path)):
            world_size = meta.world_size
            hashed |= {meta.rank} if snapshot.digest else set()
            snapshot.close()
    return 0 < world_size == len(hashed)


def flip_snapshot(run: RunFolder) -> None:
    """One bit in the middle of what a rank's newest snapshot holds."""
    found = find_snapshots(Path(snapshot_folder(run)))
    path, _ = max(found, key=lambda entry: (entry[1].attempt, entry[1].step, entry[1].rank))
    with path.open("rb") as file:
        where = read_preamble(file.fileno())
    assert where is not None
    _flip(path, where.offset + where.size // 2)


def lose_memory(run: RunFolder) -> None:
    """Every snapshot of the run on this host is gone, as after the loss of the host."""
    remove_snapshots(Path(snapshot_folder(run)))


def flip_byte(run: RunFolder) -> None:
    """One bit in the middle of a rank file of the newest checkpoint."""
    path = _newest_file(run)
    _flip(path, path.stat().st_size // 2)


def _flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def truncate(run: RunFolder) -> None:
    """The second half of a rank file of the newest checkpoint is gone."""
    path = _newest_file(run)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def raise_zombie(run: RunFolder) -> None:
    """An attempt that was succeeded commits after all: a checkpoint that is whole, verifies, and is newer than any other."""
    newest, fenced = run.checkpoints()[-1], run.attempts()[0].attempt
    zombie = CheckpointId(newest.step + ZOMBIE_AHEAD, fenced, newest.silo)
    source, target = run.storage.local_path(newest.folder), run.storage.local_path(zombie.folder)
    # Made aside and there all at once: a fenced attempt's files without a manifest are deleted by the run.
    aside, step_folder = run.storage.local_path("zombie"), target.parents[1]
    copy = aside / target.relative_to(step_folder)
    shutil.copytree(source, copy)
    manifest = Manifest.from_bytes(run.storage.read(newest.manifest))
    (copy / Path(zombie.manifest).name).write_bytes(replace(manifest, step=zombie.step, attempt=fenced).to_bytes())
    aside.rename(step_folder)


def _newest_file(run: RunFolder) -> Path:
    return sorted(run.storage.local_path(run.checkpoints()[-1].folder).glob("*.safetensors"))[-1]


_OLDER = "a checkpoint before the newest one. Strike later, or lower checkpoint.interval_steps"
_TARGETS = {
    "flip_byte": (_has_two_checkpoints, _OLDER),
    "truncate": (_has_two_checkpoints, _OLDER),
    "flip_snapshot": (
        _has_hashed_snapshots,
        "a snapshot of the step before, and its digest. Set checkpoint.snapshot_interval_steps=1",
    ),
    "zombie": (
        _has_a_past,
        "a checkpoint, and an attempt that was succeeded. Let another fault end the first attempt before it",
    ),
}
"""By kind: whether its target is there, and what that is."""
