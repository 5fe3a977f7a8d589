"""What ranks do before and after training, with the signature of `train`: the zygote has all imports behind it."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.errors import WrongArithmetic
from zerofleet.trainer.events import ControlSource, Event, Report
from zerofleet.trainer.run_folder import RunFolder
from zerofleet.trainer.world import World

if TYPE_CHECKING:
    import torch

_MATMUL_SIZE = 512
_NETWORK_NUMBERS = 1 << 18
"""1 MiB from each rank: longer than any link's smallest packets, short enough for thousands of ranks."""
_NETWORK_TIMEOUT_S = 120.0
"""How long a link may be silent in the check; ranks on a slow host may still be importing."""


class WrongResult(WrongArithmetic):
    """A device computed something wrong, or a network carried it wrong: nothing must train there."""

    def __reduce__(self) -> tuple[type, tuple[str, list[int]]]:
        return type(self), (str(self), self.ranks)


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
    _check_network(world)


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
            f"{device} on node {world.node_name} gave a wrong matmul: take the node out and have it checked",
            [world.rank],
        )


def _check_network(world: World) -> None:
    """An all-gather of numbers that tell their rank, and an all-reduce, over the links and by the library that training will use."""
    import torch
    import torch.distributed as dist
    from deepspeed.accelerator import get_accelerator

    if world.world_size == 1:
        return
    accelerator = get_accelerator()
    accelerator.set_device(world.local_rank)
    device = torch.device(accelerator.device_name(world.local_rank))
    dist.init_process_group(accelerator.communication_backend_name(), timeout=timedelta(seconds=_NETWORK_TIMEOUT_S))
    try:
        numbers = torch.arange(_NETWORK_NUMBERS, dtype=torch.int32) % 1009
        gathered = torch.empty(world.world_size, _NETWORK_NUMBERS, dtype=torch.int32, device=device)
        dist.all_gather_single(gathered.view(-1), (numbers + world.rank).to(device))
        summed = (numbers + world.rank).to(device)
        dist.all_reduce(summed)
        judge_network(gathered.cpu(), summed.cpu(), numbers)
    finally:
        dist.destroy_process_group()


def judge_network(gathered: torch.Tensor, summed: torch.Tensor, numbers: torch.Tensor) -> None:
    """`gathered` [ranks, count] should be `numbers` [count] and the rank, `summed` [count] their sum. Raises WrongResult."""
    world_size = len(gathered)
    odd = [rank for rank in range(world_size) if not bool((gathered[rank] == numbers + rank).all())]
    if odd:
        raise WrongResult(
            f"what rank {', '.join(map(str, odd))} sent to the others arrived changed: look at the network of its node",
            odd,
        )
    if not bool((summed == world_size * numbers + world_size * (world_size - 1) // 2).all()):
        raise WrongResult(
            f"an all-reduce over {world_size} ranks gave a wrong sum, although each rank's numbers arrive: look at the network",
            [],
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
