"""The peer `torchrun --max-restarts`: DeepSpeed saves to local disk after every step; whoever starts loads the newest.

torchrun --standalone --nproc-per-node 2 --max-restarts 3 --monitor-interval 0.1 -m zerofleet.benchmarks.peers.torchrun FOLDER
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from zerofleet.benchmarks.peers.common import KEPT_CHECKPOINTS, train


class Checkpoints:
    """`step-N` folders, and `newest`, which names one that every rank has written in full.

    DeepSpeed's own `latest` is written before the other ranks are known to be done: a kill at that moment would leave
    torchrun with a checkpoint that nobody can load.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._newest = folder / "newest"

    def load(self, engine: Any) -> int:
        """Steps done."""
        if not self._newest.exists():
            return 0
        tag = self._newest.read_text()
        engine.load_checkpoint(str(self._folder), tag=tag)
        return int(tag.removeprefix("step-"))

    def save(self, engine: Any, step: int) -> None:
        """Returns when every rank has saved; rank 0 then names the checkpoint and removes the one that is too old."""
        tag = f"step-{step}"
        engine.save_checkpoint(str(self._folder), tag=tag, save_latest=False)
        if engine.global_rank == 0:
            draft = self._newest.with_suffix(".draft")
            draft.write_text(tag)
            draft.replace(self._newest)
            shutil.rmtree(self._folder / f"step-{step - KEPT_CHECKPOINTS}", ignore_errors=True)


def main() -> None:
    folder = Path(sys.argv[1])
    checkpoints = Checkpoints(folder / "checkpoints")
    train(folder, checkpoints.load, checkpoints.save)


if __name__ == "__main__":
    main()
