"""zerofleet itself: the loop that its ranks run, without saves."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from zerofleet.benchmarks.peers.training.task import WORLD_SIZE, Task
from zerofleet.benchmarks.peers.training.turns import Turns
from zerofleet.cluster.binding import bind, quota_cores
from zerofleet.cluster.host import num_cores
from zerofleet.trainer import engine, host_collectives
from zerofleet.trainer.batch import BatchPlan
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.events import Control, Event
from zerofleet.trainer.loop import Loop
from zerofleet.trainer.token_loss import TokenLoss
from zerofleet.trainer.world import World

JOB, CACHE, CHANGED = "job.json", "cache", "change.txt"
"""Of the task's folder: the job, a link to its prepared data, and what to change in its ranks."""


def _whole_logits() -> None:
    setattr(TokenLoss, "try_out", lambda loss, *arguments: setattr(loss, "_head", None))  # noqa: B010


def _plain_adamw() -> None:
    class Plain(torch.optim.AdamW):
        def __init__(self, *groups: Any, **options: Any) -> None:
            super().__init__(*groups, **{**options, "fused": False})

    torch.optim.AdamW = Plain  # type: ignore[misc]


def _no_shared_memory() -> None:
    host_collectives.LEAST_BYTES = sys.maxsize


def _copied_gradients() -> None:
    engine.spare_copies = lambda optimizer: None  # type: ignore[attr-defined]


def _kept_gradients() -> None:
    plain = engine.deepspeed_config

    def keeping(config: TrainConfig, plan: BatchPlan) -> dict[str, Any]:
        merged = plain(config, plan)
        merged.get("bf16", {})["immediate_grad_update"] = False
        return merged

    engine.deepspeed_config = keeping


def _bind_cores() -> None:
    found = bind(int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"]), torch.get_num_threads())
    if not found.cores:
        raise SystemExit(found.why_not)


CHANGES = {
    **({"cores bound": _bind_cores} if quota_cores() >= num_cores() >= WORLD_SIZE else {}),
    "without fused loss": _whole_logits,
    "without fused AdamW": _plain_adamw,
    "without shared memory": _no_shared_memory,
    "without fewer copies of gradients": _copied_gradients,
    "without gradients let go": _kept_gradients,
}
"""What can be changed in a rank to measure it, though no setting of the trainer asks for that; done before anything is built."""


def train(task: Task, turns: Turns) -> None:
    folder = Path(task.folder)
    if (folder / CHANGED).exists():
        CHANGES[(folder / CHANGED).read_text()]()
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
