"""Makes a task's folder: zerofleet's job, its prepared data in the run's own order, and its initial weights."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zerofleet.benchmarks.overhead import MODEL as SMALL
from zerofleet.benchmarks.peers.training import task as settings_of_all
from zerofleet.benchmarks.peers.training.task import WORLD_SIZE, ZERO_STAGE, Task
from zerofleet.benchmarks.peers.training.zerofleet_loop import CACHE, CHANGED, JOB
from zerofleet.trainer.batch import BatchPlan
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.data.cache import DataCache
from zerofleet.trainer.data.feed import Feed
from zerofleet.trainer.data.prepare import prepare
from zerofleet.trainer.model import build_model, check
from zerofleet.trainer.run_folder import RunFolder
from zerofleet.trainer.sizing.setup import attention_of

SEQUENCE_LENGTH = 256


@dataclass(frozen=True)
class Model:
    """A model with its batch, and how it is measured."""

    name: str
    global_batch_size: int
    micro_batch_size: int
    steps_per_turn: int
    """So that a turn is long against what switching costs."""
    peers_at_a_time: int
    """Beside zerofleet in 24 GiB of memory."""
    config: dict[str, Any] = field(repr=False)


MEDIUM = SMALL | {
    "hidden_size": 768,
    "intermediate_size": 2304,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
}
MODELS = {
    model.name: model
    for model in (
        Model("small", 16, 4, 3, 6, SMALL),
        Model("medium", 4, 2, 1, 2, MEDIUM),
    )
}
"""6.8 and 98 million parameters, with the 8192 entries of the tokenizer that a job trains by default."""


def job(model: Model, folder: Path, settings: Mapping[str, Any]) -> TrainConfig:
    """What zerofleet's ranks are given: the defaults but for what the task says, and `settings` ("section.field": value)."""
    sections: dict[str, dict[str, Any]] = {
        "run": {"name": "peers", "storage": str(folder / "runs")},
        "model": {"config": model.config},
        "data": {"files": ["python-stdlib"], "sequence_length": SEQUENCE_LENGTH},
        "train": {
            "steps": 1_000_000,
            "global_batch_size": model.global_batch_size,
            "micro_batch_size": model.micro_batch_size,
            "zero_stage": ZERO_STAGE,
            "precision": "bf16",
            "learning_rate": settings_of_all.LEARNING_RATE,
            "betas": list(settings_of_all.BETAS),
            "eps": settings_of_all.EPS,
            "weight_decay": settings_of_all.WEIGHT_DECAY,
            "gradient_clipping": settings_of_all.GRADIENT_CLIPPING,
            "schedule": "constant",
            "replica_check_interval_steps": 0,
        },
        "checkpoint": {"interval_steps": 0, "snapshot_interval_steps": 0},
    }
    for path, value in settings.items():
        section, _, name = path.partition(".")
        sections[section][name] = value
    return TrainConfig.model_validate(sections)


def make_task(model: Model, folder: Path, steps: int, settings: Mapping[str, Any], change: str = "") -> Task:
    """Everything of a task in an empty folder, with sequences for so many steps. `settings` are zerofleet's, of which the peers follow attention and
    compilation; `change` is a name of `zerofleet_loop.CHANGES`."""
    config = job(model, folder, settings)
    folder.mkdir(parents=True)
    if change:
        (folder / CHANGED).write_text(change)
    (folder / JOB).write_text(config.model_dump_json())
    run = RunFolder(config.run.storage, "peers")
    run.create("{}")
    run.claim_attempt(1, None, WORLD_SIZE, ZERO_STAGE)
    cache = prepare(config.data, config.run.seed, lambda stage, fraction, detail: None)
    (folder / CACHE).symlink_to(cache.path)
    for name, values in zip(("input_ids", "labels"), sequences(config, cache, steps), strict=True):
        np.save(folder / f"{name}.npy", values)
    build_model(config, check(config, cache), contextlib.nullcontext(), on_gpu=False).save_pretrained(folder / "model")
    return Task(
        str(folder),
        model.global_batch_size,
        model.micro_batch_size,
        steps,
        attention_of(config, on_gpu=False),
        config.train.compile,
    )


def sequences(config: TrainConfig, cache: DataCache, steps: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Input ids and labels of the first steps, [sequences, tokens], in the order of the steps' blocks: what zerofleet's feed gives its ranks."""
    plan = BatchPlan.of(config.train.global_batch_size, config.train.micro_batch_size, WORLD_SIZE)
    assert plan.num_surplus_blocks == plan.num_padded_sequences == 0, "nothing that only zerofleet would pad"
    feed = Feed.of(config, cache.train, plan, config.order_key, ())
    input_ids, labels = [], []
    for step in range(steps):
        by_rank = [list(feed.micro_batches(feed.step_plan(step), rank)) for rank in range(WORLD_SIZE)]
        for batch in (batch for micro_step in zip(*by_rank, strict=True) for batch in micro_step):
            input_ids.append(batch.inputs["input_ids"])
            labels.append(batch.labels)
    return np.concatenate(input_ids), np.concatenate(labels)
