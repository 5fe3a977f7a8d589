"""A rank of a build that takes turns with another: run by its path in a process whose `zerofleet` is that build's, which may be older than this file.

It imports of zerofleet only what a step needs. Without a rank in its environment it prepares the data, claims the run and writes the data's path to `prepared`. As a rank it tells its
line (`benchmarks/builds.py` is the other end) first (arm, rank), and None when everything is built; from then on it gets a number of steps and tells what they took, until the line is closed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any


def main(
    address: str, arm: str, recipe: str, overrides: list[str], num_ranks: int, num_threads: int, prepared: str
) -> None:
    from zerofleet.launch.config import load_job

    config = load_job(recipe, overrides).train_config()
    if "RANK" not in os.environ:
        _prepare(config, num_ranks, Path(prepared))
        return
    line = Client(address, "AF_UNIX")
    line.send((arm, int(os.environ["RANK"])))
    import torch

    from zerofleet.trainer.events import Control
    from zerofleet.trainer.loop import Loop
    from zerofleet.trainer.world import World

    torch.set_num_threads(num_threads)
    loop = Loop(config, World.from_env(attempt=1), Path(Path(prepared).read_text()), lambda event: None, Control)
    loop.build()
    loop.load()
    line.send(None)
    with contextlib.suppress(EOFError):
        while True:
            _turn(line, loop)


def _prepare(config: Any, num_ranks: int, prepared: Path) -> None:
    from zerofleet.trainer.data.prepare import prepare
    from zerofleet.trainer.run_folder import RunFolder

    cache = prepare(config.data, config.run.seed, lambda stage, fraction, detail: None).path
    run = RunFolder(config.run.storage, config.run.name)
    run.create("{}")
    run.claim_attempt(1, None, num_ranks, config.train.zero_stage)
    prepared.write_text(str(cache))


def _turn(line: Connection, loop: Any) -> None:
    """Raises EOFError when there are no more."""
    import torch.distributed as dist

    steps = line.recv()
    with contextlib.suppress(OSError):  # a kernel without it tells the peak of the start
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew (proc(5))
    dist.barrier()
    began, losses = time.perf_counter(), []
    for _ in range(steps):
        loop.train_step()
        losses.append(loop.losses.values()[-1])
    dist.barrier()
    seconds = time.perf_counter() - began
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak is not None, "Linux tells it"
    line.send({"seconds": seconds, "losses": losses, "peak_bytes": int(peak[1]) * 1024})


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
