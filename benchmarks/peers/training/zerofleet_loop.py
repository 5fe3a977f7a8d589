"""zerofleet itself: the loop that its ranks run, without saves."""

from __future__ import annotations

from pathlib import Path

from zerofleet.benchmarks.peers.training.task import Task
from zerofleet.benchmarks.peers.training.turns import Turns
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.events import Control, Event
from zerofleet.trainer.loop import Loop
from zerofleet.trainer.world import World

JOB, CACHE = "job.json", "cache"
"""Of the task's folder: the job, and a link to its prepared data."""


def train(task: Task, turns: Turns) -> None:
    folder = Path(task.folder)
    steps: list[Event] = []

    def keep(event: Event) -> None:
        if event.kind == "step":
            steps.append(event)

    config = TrainConfig.model_validate_json((folder / JOB).read_text())
    loop = Loop(config, World.from_env(attempt=1), (folder / CACHE).resolve(), keep, Control)
    loop.build()
    loop.load()
    turns.ready()
    while True:
        loop.train_step()
        turns.done(loop.losses.values()[-1])
