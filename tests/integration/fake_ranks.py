"""Small functions that ranks run in place of the trainer."""

from __future__ import annotations

import os
import time
from pathlib import Path

from zerofleet.trainer.errors import UserError
from zerofleet.trainer.events import Control, Event
from zerofleet.trainer.run_folder import RunFolder


def preload(model_type, note) -> None:
    """Nothing: this module is imported."""


def train(config, world, cache_path, report, control, fault, snapshots) -> None:
    """Steps of 20 ms from the attempt's start, with a checkpoint of nothing after every fifth."""
    run = RunFolder(config.run.storage, config.run.name)
    record = run.attempts()[-1]

    def say(kind: str, step: int, phase: str, **data) -> None:
        report(Event(kind, world.attempt, world.rank, step, phase, time.time(), data=data))

    print(f"rank {world.rank} of {world.world_size}, threads {len(os.listdir('/proc/self/task'))}")
    say("phase", record.start_step, "init", pid=os.getpid())
    for step in range(record.start_step + 1, config.train.steps + 1):
        fault("step", step)
        time.sleep(0.02)
        say("phase", step, "step")
        asked = control().action
        if world.rank == 0:
            say("step", step, "step", loss=1 / step, tokens=1)
            if step % 5 == 0 or asked == "stop":
                say("checkpoint", step, "save", path="", bytes=0)
        if asked == "stop":
            return say("stopped", step, "end")
    if world.rank == 0:
        say("finished", config.train.steps, "end")


def train_until_told(config, world, cache_path, report, control, fault, snapshots) -> None:
    """As `train`; the others leave when rank 0 does, as they would with a collective."""
    stop = _stop_of(config, cache_path)

    def asked():
        if world.rank == 0 and control().action == "stop":
            stop.touch()
        return Control("stop" if stop.exists() else "none")

    train(config, world, cache_path, report if world.rank == 0 else _without_end(report), asked, fault, snapshots)


def save_for_long(config, world, cache_path, report, control, fault, snapshots) -> None:
    """As `train_until_told`; its last save takes longer than the alarm over Ray's handler of SIGTERM would leave a driver."""

    def slowly(event):
        if event.kind == "checkpoint" and _stop_of(config, cache_path).exists():
            for _ in range(9):
                report(Event("phase", world.attempt, world.rank, event.step, "save", time.time()))
                time.sleep(0.5)
        report(event)

    train_until_told(config, world, cache_path, slowly, control, fault, snapshots)


def _stop_of(config, cache_path) -> Path:
    return Path(cache_path) / f"stop-{config.run.name}"


def _without_end(report):
    return lambda event: None if event.kind == "stopped" else report(event)


def refuse(config, world, cache_path, report, control, fault, snapshots) -> None:
    raise UserError("train.global_batch_size=3 cannot be dealt: raise it")


def fail(config, world, cache_path, report, control, fault, snapshots) -> None:
    raise RuntimeError(f"a bug on rank {world.rank}")


def say_hello(config, world, cache_path, report, control, fault, snapshots) -> None:
    """Where the rank is; then it stays."""
    data = {"local_rank": world.local_rank, "node_rank": world.node_rank, "world_size": world.world_size}
    data["agent"] = os.getppid()
    report(Event("hello", world.attempt, world.rank, 0, "init", time.time(), data=data))
    time.sleep(60)
