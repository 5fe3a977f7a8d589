"""The peer Ray Train with DeepSpeed: DeepSpeed's loop in the workers of a TorchTrainer (https://docs.ray.io/en/latest/train/deepspeed.html), on a
Ray of its own. Its guide reports after every epoch, which here never ends: nothing is reported while turns are measured.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from zerofleet.benchmarks.peers.ray_train import own_environment, start_ray
from zerofleet.benchmarks.peers.training.task import WORLD_SIZE, Task
from zerofleet.benchmarks.peers.training.turns import Finished, Turns


def train_worker(config: dict[str, str]) -> None:
    """One rank, in Ray Train's worker."""
    import ray.train
    import torch

    from zerofleet.benchmarks.peers.training.deepspeed_loop import train

    torch.set_num_threads(1)
    turns = Turns(config["address"], "ray_train", ray.train.get_context().get_world_rank())
    try:
        train(Task.of(config["task"]), turns)
    except Finished:
        return


def main(task: str, address: str) -> None:
    """The driver, until its workers have had all their turns."""
    own_environment()
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    with tempfile.TemporaryDirectory(prefix="zf-ray-") as folder:  # a short path: Ray's sockets lie in it
        start_ray(Path(folder, "ray"))
        TorchTrainer(
            train_worker,
            train_loop_config={"task": task, "address": address},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=WORLD_SIZE),
            run_config=RunConfig(name="peers", storage_path=str(Path(folder, "storage"))),
        ).fit()
        ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
