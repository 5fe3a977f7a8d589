"""What one rank does before and after training, with the signature of `train`: the zygote has all imports behind it."""

from __future__ import annotations

import time
from pathlib import Path

from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.events import ControlSource, Event, Report
from zerofleet.trainer.run_folder import RunFolder
from zerofleet.trainer.world import World


def check(
    config: TrainConfig, world: World, cache_path: Path, report: Report, control: ControlSource, fault: object
) -> None:
    """Whether the model takes the data: vocabulary and positions. Raises UserError."""
    from zerofleet.trainer.data.cache import DataCache
    from zerofleet.trainer.model import check as check_model

    check_model(config, DataCache.open(cache_path))


def export(
    config: TrainConfig, world: World, cache_path: Path, report: Report, control: ControlSource, fault: object
) -> None:
    """The finished model as a Hugging Face folder."""
    from zerofleet.trainer.checkpoint.export import export as export_checkpoint

    assert config.run.name is not None
    started = time.time()
    run, dtype = RunFolder(config.run.storage, config.run.name), config.checkpoint.export_dtype
    path = export_checkpoint(run, None, None, dtype)
    data = {"path": path, "dtype": dtype}
    report(Event("export", world.attempt, world.rank, config.train.steps, "end", started, time.time() - started, data))
