"""The real driver, Ray, agents and zygotes, with small functions in place of the trainer and of the data.

Run as `python -m tests.integration.fake_driver STORAGE RUN`. What ranks do is named by the run's `data.text_field`.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace

from zerofleet.launch import driver
from zerofleet.trainer.data.left_out import LeftOut
from zerofleet.trainer.errors import ZerofleetError
from zerofleet.trainer.run_folder import CheckpointId, RunFolder

RANKS = "tests.integration.fake_ranks"


def select(run: RunFolder, excluded):
    """The newest checkpoint that was reported: there are no files."""
    found = [CheckpointId(e.step, e.attempt) for e in run.events() if e.kind == "checkpoint"]
    return SimpleNamespace(
        checkpoint=max(found, key=lambda c: c.step, default=None), skipped=(), in_memory=False, found=len(found)
    )


def main() -> int:
    logging.basicConfig(level=logging.INFO)
    storage, name = sys.argv[1:3]
    folder = Path(storage) / "cache"
    folder.mkdir(exist_ok=True)
    driver.prepare = lambda data, seed, progress: SimpleNamespace(path=folder, left_out=LeftOut())
    driver.select_checkpoint = select
    target = driver.effective_job(RunFolder(storage, name)).data.text_field
    program = driver.Program(f"{RANKS}:{target}", f"{RANKS}:preload", has_check=False, has_export=False)
    try:
        return driver.drive(storage, name, sys.argv[3:], program)
    except ZerofleetError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
