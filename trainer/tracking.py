"""Weights & Biases, for whoever receives the reports. One id over all attempts; a tracker's trouble never ends a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import xxhash

from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.events import Event


def run_id(storage: str, name: str) -> str:
    """The same over all attempts and drivers of a run."""
    return xxhash.xxh3_64_hexdigest(f"{storage.rstrip('/')}/{name}".encode())


class WandbTracker:
    """Sends steps and evaluations to wandb; offline without `WANDB_API_KEY`."""

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        import wandb

        settings = config.tracking.wandb
        assert config.run.name is not None
        folder.mkdir(parents=True, exist_ok=True)
        self._run: Any = wandb.init(
            project=settings.project,
            entity=settings.entity,
            id=run_id(config.run.storage, config.run.name),
            name=config.run.name,
            resume="allow",
            mode="online" if os.environ.get("WANDB_API_KEY") else "offline",
            dir=str(folder),
            config=config.model_dump(mode="json"),
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )

    def on_event(self, event: Event) -> None:
        """Logs numbers of `step` and `eval` events at the event's step."""
        numbers = {key: value for key, value in event.data.items() if isinstance(value, int | float)}
        self._run.log(
            {f"{'eval' if event.kind == 'eval' else 'train'}/{key}": value for key, value in numbers.items()},
            step=event.step,
        )

    def close(self) -> None:
        self._run.finish()
