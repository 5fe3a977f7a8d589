"""A rank of a build that takes turns with another: run by its path in a process whose `zerofleet` is that build's, which may be older than this file.

It imports of zerofleet only what a step needs, where that is needed. What it is told and tells over its line (`benchmarks/builds.py` is the other end):
first (arm, rank); then it gets the prepared data's path, of rank 0 None, which prepares it, and tells the path; when everything is built it tells None; from then on it gets a number of
steps and tells a `Turn`, until the line is closed.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any


def main(address: str, arm: str, recipe: str, overrides: list[str], threads: int) -> None:
    line = Client(address, "AF_UNIX")
    line.send((arm, int(os.environ["RANK"])))
    import torch
    import torch.distributed as dist

    from zerofleet.launch.config import load_job
    from zerofleet.trainer.data.prepare import prepare
    from zerofleet.trainer.events import Control
    from zerofleet.trainer.loop import Loop
    from zerofleet.trainer.run_folder import RunFolder
    from zerofleet.trainer.world import World

    torch.set_num_threads(threads)
    config = load_job(recipe, overrides).train_config()
    world = World.from_env(attempt=1)
    if (cache := line.recv()) is None:
        cache = str(prepare(config.data, config.run.seed, lambda stage, fraction, detail: None).path)
        assert config.run.name is not None, "among the overrides"
        run = RunFolder(config.run.storage, config.run.name)
        run.create("{}")
        run.claim_attempt(1, None, world.world_size, config.train.zero_stage)
        line.send(cache)
    loop = Loop(config, world, Path(cache), lambda event: None, Control)
    loop.build()
    loop.load()
    line.send(None)
    with contextlib.suppress(EOFError):
        while True:
            _turn(line, loop, dist)


def _turn(line: Connection, loop: Any, dist: Any) -> None:
    """Raises EOFError when there are no more."""
    steps = line.recv()
    dist.barrier()
    began, losses = time.perf_counter(), []
    for _ in range(steps):
        loop.train_step()
        losses.append(loop.losses.values()[-1])
    dist.barrier()
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    line.send({"seconds": time.perf_counter() - began, "losses": losses, "peak_bytes": peak_bytes})


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
