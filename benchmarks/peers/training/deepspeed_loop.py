"""The peer DeepSpeed: the loop of its documentation (https://www.deepspeed.ai/getting-started/)."""

from __future__ import annotations

import deepspeed
import torch.distributed as dist

from zerofleet.benchmarks.peers.training.task import Task
from zerofleet.benchmarks.peers.training.turns import Turns


def train(task: Task, turns: Turns) -> None:
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    loop(task, turns)


def loop(task: Task, turns: Turns) -> None:
    """In a process group that is there already."""
    model = task.model()
    engine, *_ = deepspeed.initialize(model=model, optimizer=task.optimizer(model), config=task.deepspeed_config())
    if task.is_compiled:
        engine.compile()  # https://deepspeed.readthedocs.io/en/latest/training.html#pytorch-compile
    batches = iter(task.batches(dist.get_rank()))
    turns.ready()
    while True:
        total = 0.0
        for _ in range(task.accumulation):
            loss = engine(**next(batches)).loss
            engine.backward(loss)
            engine.step()
            total += loss.item()
        turns.done(total / task.accumulation)
