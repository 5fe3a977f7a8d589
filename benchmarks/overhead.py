"""Step time of zerofleet over a bare DeepSpeed loop: same model, batch, precision, clipping and loss, steps alternating.

    zerofleet bench overhead --output benchmarks/results/DATE-overhead.json

All engines live in the same processes and take turns step by step, so whatever else the machine does falls on all. There
are two of each kind, built in the order A B B A, so that no kind has the advantage of having been built first. A pair is
one step of both A's against one step of both B's; the same steps also give each kind against itself, which shows how far
two equal loops are apart. The bare loop is what DeepSpeed's documentation shows (a DataLoader, forward, backward, step) with our loss and fused
AdamW: what is left is what we do around a step. Other systems with what they have themselves are `bench peer_throughput`'s.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from zerofleet.benchmarks.statistics import median_interval
from zerofleet.launch.environment import fingerprint
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.data.cache import DataCache
from zerofleet.trainer.data.prepare import prepare
from zerofleet.trainer.engine import init_distributed, parameter_groups
from zerofleet.trainer.events import Control
from zerofleet.trainer.loop import Loop
from zerofleet.trainer.model import build_model, check
from zerofleet.trainer.run_folder import RunFolder
from zerofleet.trainer.token_loss import TokenLoss
from zerofleet.trainer.world import World

MODEL = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
SKIPPED_PAIRS = 2
"""Pairs before the first that counts."""

ORDERS = (("A1", "B1", "B2", "A2"), ("B1", "A1", "A2", "B2"))
"""Who steps when, in even and in odd pairs: A zerofleet, B bare. Over two pairs each kind comes first once and follows itself once."""


def job(storage: str, name: str, precision: str, zero_stage: int) -> TrainConfig:
    """The benchmark's job: 16 sequences of 256 tokens per step, two micro-steps on two ranks."""
    return TrainConfig.model_validate(
        {
            "run": {"name": name, "storage": storage},
            "model": {"config": MODEL},
            "data": {"files": ["python-stdlib"], "sequence_length": 256},
            "train": {
                "steps": 10_000,
                "global_batch_size": 16,
                "micro_batch_size": 4,
                "zero_stage": zero_stage,
                "precision": precision,
                "replica_check_interval_steps": 0,
            },
            "checkpoint": {"interval_steps": 0},
        }
    )


class Sequences(Dataset[torch.Tensor]):
    """The same prepared sequences, as a plain torch data set."""

    def __init__(self, cache: DataCache) -> None:
        self._store = cache.train

    def __len__(self) -> int:
        return self._store.num_sequences

    def __getitem__(self, index: int) -> torch.Tensor:
        input_ids, labels = self._store.read(np.array([index]))
        return torch.from_numpy(np.stack([input_ids[0], labels[0]]))


def bare_loop(config: TrainConfig, cache: DataCache, world: World, device: torch.device) -> Iterator[float]:
    """Yields after every step of a plain DeepSpeed training loop."""
    train = config.train
    accumulation = train.global_batch_size // (train.micro_batch_size * world.world_size)
    model = build_model(config, check(config, cache), contextlib.nullcontext(), on_gpu=False)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, train.weight_decay), lr=train.learning_rate, betas=train.betas, fused=True
    )
    ds_config = {
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": train.gradient_clipping,
        "zero_optimization": {"stage": train.zero_stage},
        "bf16": {"enabled": train.precision == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "steps_per_print": 2**31,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_config)
    token_loss = TokenLoss(model)
    sampler: DistributedSampler[torch.Tensor] = DistributedSampler(
        Sequences(cache), world.world_size, world.rank, shuffle=True
    )
    loader = DataLoader(Sequences(cache), batch_size=train.micro_batch_size, sampler=sampler, drop_last=True)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    while True:
        total = 0.0
        for _ in range(accumulation):
            input_ids, labels = next(batches).to(device).unbind(1)
            loss = token_loss(engine, {"input_ids": input_ids}, labels) / labels.numel()
            engine.backward(loss)
            engine.step()
            total += loss.item()
        yield total / accumulation


def bare_step(config: TrainConfig, cache: DataCache, world: World, device: torch.device) -> Callable[[], Any]:
    """One step of a bare loop of its own."""
    loop = bare_loop(config, cache, world, device)
    next(loop)
    return lambda: next(loop)


def zerofleet_step(config: TrainConfig, cache: DataCache, world: World) -> Callable[[], Any]:
    """One step of a zerofleet loop of its own, with its ledger."""
    if world.rank == 0:
        assert config.run.name is not None
        folder = RunFolder(config.run.storage, config.run.name)
        folder.create("{}")
        folder.claim_attempt(1, None, world.world_size, config.train.zero_stage)
    dist.barrier()
    loop = Loop(config, world, cache.path, lambda event: None, Control)
    loop.build()
    loop.load()
    return loop.train_step


def timed(step: Callable[[], Any]) -> float:
    """Seconds of one step, from a barrier to a barrier."""
    dist.barrier()
    start = time.perf_counter()
    step()
    dist.barrier()
    return time.perf_counter() - start


def ratio(pairs_s: list[dict[str, float]], over: tuple[str, ...], under: tuple[str, ...]) -> dict[str, float]:
    """Median over the pairs of the summed seconds of `over` by those of `under`, with its 95 % interval."""
    values = [sum(pair[name] for name in over) / sum(pair[name] for name in under) for pair in pairs_s]
    low, median, high = median_interval(values)
    return {"low": low, "median": median, "high": high, "confidence": 0.95}


def measure(pairs: int, precision: str, zero_stage: int) -> dict[str, Any]:
    """Alternating steps of both loops; the figures of all pairs."""
    torch.set_num_threads(1)
    bare_world = World.from_env(attempt=1)
    device = init_distributed(bare_world, keeps_freed_memory=True)
    storage: list[str] = [tempfile.mkdtemp(prefix="zerofleet-overhead-")] if bare_world.rank == 0 else [""]
    dist.broadcast_object_list(storage)
    config = job(storage[0], "a", precision, zero_stage)
    cache = prepare(config.data, config.run.seed, lambda stage, fraction, detail: None)
    ours = [zerofleet_step(job(storage[0], "a", precision, zero_stage), cache, bare_world)]
    bare = [bare_step(config, cache, bare_world, device) for _ in range(2)]
    ours.append(zerofleet_step(job(storage[0], "b", precision, zero_stage), cache, bare_world))
    engines = {"A1": ours[0], "A2": ours[1], "B1": bare[0], "B2": bare[1]}
    pairs_s: list[dict[str, float]] = []
    for pair in range(SKIPPED_PAIRS + pairs):
        seconds = {name: timed(engines[name]) for name in ORDERS[pair % 2]}
        if pair >= SKIPPED_PAIRS:
            pairs_s.append(seconds)
    return {
        "benchmark": "overhead",
        "config": {
            "precision": precision,
            "zero_stage": zero_stage,
            "world_size": bare_world.world_size,
            "model": MODEL,
        },
        "ratio": ratio(pairs_s, ("A1", "A2"), ("B1", "B2")),
        "controls": {
            "zerofleet_itself": ratio(pairs_s, ("A1",), ("A2",)),
            "bare_itself": ratio(pairs_s, ("B1",), ("B2",)),
        },
        "median_step_s": {name: statistics.median(pair[name] for pair in pairs_s) for name in engines},
        "pairs_s": pairs_s,
        "environment": fingerprint(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=28)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--zero-stage", type=int, choices=(0, 1, 2, 3), default=1)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    result = measure(arguments.pairs, arguments.precision, arguments.zero_stage)
    if dist.get_rank() == 0:
        print(json.dumps({key: value for key, value in result.items() if key != "pairs_s"}, indent=1))
        if arguments.output:
            arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
