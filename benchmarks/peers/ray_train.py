"""The peer Ray Train V2: a TorchTrainer that restarts without limit and reports a checkpoint after every step.

python -m zerofleet.benchmarks.peers.ray_train FOLDER   (a short path: Ray's sockets lie in it)

Its best settings as the installed version documents them: DeepSpeed saves straight into the run's storage (NO_UPLOAD: no
copy), the controller looks at its workers every 0.1 s rather than 2 s, and what a run does not need (dashboard, metrics,
preemption watcher) is off. A Ray of its own: never one that runs already.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
from pathlib import Path
from typing import Any

from zerofleet.benchmarks.peers.common import KEPT_CHECKPOINTS, WORLD_SIZE, train

SETTINGS = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Environment of the peer. The last two are not Ray Train's: zerofleet's own Ray has them too."""

_HOST = "127.0.0.1"
_OBJECT_STORE_BYTES = 80_000_000
_TAG = "state"


def train_worker(config: dict[str, str]) -> None:
    """One rank, in Ray Train's worker."""
    import ray.train
    from ray.train import Checkpoint
    from ray.train.v2.api.report_config import CheckpointUploadMode

    storage = Path(ray.train.get_context().get_storage().experiment_fs_path)

    def load(engine: Any) -> int:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return 0
        with checkpoint.as_directory() as folder:
            _, client = engine.load_checkpoint(folder, tag=_TAG)
            return int(client["step"])

    def save(engine: Any, step: int) -> None:
        folder = storage / f"checkpoint_{step:06d}"
        engine.save_checkpoint(str(folder), tag=_TAG, client_state={"step": step}, save_latest=False)
        ray.train.report(
            {"step": step},
            checkpoint=Checkpoint.from_directory(str(folder)),
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )

    train(Path(config["folder"]), load, save)


def own_environment() -> None:
    """Everything that this process starts can reach only the Ray that it starts. Before Ray is imported: it reads the
    environment then.

    Ray Train's own helpers look for a cluster by themselves, among all that run on the machine; so the address of ours is
    decided beforehand and said. The token keeps Ray from leaving one in the user's home.
    """
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port = probe.getsockname()[1]
    own = {"RAY_GCS_SERVER_PORT": str(port), "RAY_ADDRESS": f"{_HOST}:{port}"}
    os.environ.update(SETTINGS, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), **own)


def start_ray(folder: Path) -> None:
    """A Ray of its own for two workers, with its sockets in `folder`, whose path has to be short. After `own_environment`."""
    import ray

    ray.init(
        address="local",
        _node_ip_address=_HOST,
        num_cpus=WORLD_SIZE,
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        _temp_dir=str(folder),
    )


def main() -> None:
    own_environment()
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    folder = Path(sys.argv[1])
    start_ray(folder / "ray")
    TorchTrainer(
        train_worker,
        train_loop_config={"folder": str(folder)},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=WORLD_SIZE),
        run_config=RunConfig(
            name="recovery",
            storage_path=str(folder / "storage"),
            failure_config=FailureConfig(max_failures=-1),
            checkpoint_config=CheckpointConfig(num_to_keep=KEPT_CHECKPOINTS),
        ),
    ).fit()


if __name__ == "__main__":
    main()
