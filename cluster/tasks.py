"""What ranks do before and after training, with the signature of `train`: the zygote has all imports behind it."""

from __future__ import annotations

import time
from pathlib import Path

from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.errors import ZerofleetError
from zerofleet.trainer.events import ControlSource, Event, Report
from zerofleet.trainer.run_folder import RunFolder
from zerofleet.trainer.world import World

_MATMUL_SIZE = 512


class WrongResult(ZerofleetError):
    """A device computed something wrong, or not at all: it must not train."""


def check(
    config: TrainConfig,
    world: World,
    cache_path: Path,
    report: Report,
    control: ControlSource,
    fault: object,
    snapshots: object,
) -> None:
    """Raises WrongResult when the rank's device is unfit; on rank 0 UserError when DeepSpeed or the model cannot take the job."""
    from zerofleet.trainer.data.cache import DataCache
    from zerofleet.trainer.deepspeed_check import check_deepspeed_section
    from zerofleet.trainer.model import check as check_model

    if world.rank == 0:
        check_deepspeed_section(config, world.world_size)
        check_model(config, DataCache.open(cache_path, config.data.stream))
    _check_device(world)


def _check_device(world: World) -> None:
    """A matmul of small whole numbers, which is exact in every precision that it may be computed in."""
    import torch
    from deepspeed.accelerator import get_accelerator

    device = torch.device(get_accelerator().device_name(world.local_rank))
    numbers = torch.arange(_MATMUL_SIZE**2, dtype=torch.float32).view(_MATMUL_SIZE, -1)
    left, right = numbers % 7 - 3, numbers % 5 - 2
    product = (left.to(device) @ right.to(device)).cpu().double()
    if not torch.equal(product.sum(1), left.double() @ right.double().sum(1)):
        raise WrongResult(
            f"{device} on node {world.node_name} gave a wrong matmul: take the node out and have it checked"
        )


def export(
    config: TrainConfig,
    world: World,
    cache_path: Path,
    report: Report,
    control: ControlSource,
    fault: object,
    snapshots: object,
) -> None:
    """The finished model as a Hugging Face folder."""
    from zerofleet.trainer.checkpoint.export import export as export_checkpoint

    assert config.run.name is not None
    started = time.time()
    run, dtype = RunFolder(config.run.storage, config.run.name), config.checkpoint.export_dtype

    def say(message: str) -> None:
        data = {"class": "checkpoint", "message": message}
        report(Event("incident", world.attempt, world.rank, config.train.steps, "end", time.time(), data=data))

    path = export_checkpoint(run, None, None, dtype, say)
    data = {"path": path, "dtype": dtype}
    report(Event("export", world.attempt, world.rank, config.train.steps, "end", started, time.time() - started, data))
