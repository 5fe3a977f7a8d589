"""The planner against real ranks: peak memory of every rank of small and medium models, over stages, precisions and two families.

    zerofleet bench plan_memory --output benchmarks/results/DATE-plan-memory.json

What is counted: the most pages that a rank has had for itself: the highest resident set (VmHWM), less what it shares with the process that it was
forked from (its resident set after the last step less `Private_*` in /proc/PID/smaps: torch, DeepSpeed, transformers), which is there once
per node. Each case trains three steps of two micro-steps on made-up text, without saving. A model of almost no parameters shows what a rank has of
its own whatever it trains; it is no part of the bar.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from zerofleet.benchmarks.peers.systems import corpus
from zerofleet.benchmarks.rank_group import Group, requests, run_group
from zerofleet.benchmarks.recovery import prepare_environment
from zerofleet.launch.environment import fingerprint
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.data.prepare import prepare
from zerofleet.trainer.events import Control
from zerofleet.trainer.loop import Loop
from zerofleet.trainer.run_folder import RunFolder
from zerofleet.trainer.sizing import sizes_of
from zerofleet.trainer.sizing.memory import Moment, rank_memory
from zerofleet.trainer.sizing.node import RANK_BYTES, with_reserve
from zerofleet.trainer.sizing.setup import Setup

STEPS = 3
"""AdamW's moments appear in the first step: from the second on everything is there."""
MOST, LEAST = 1.10, 0.97
"""Planned over measured: within 10 %, and never optimistic by more than 3 %."""


def llama(width: int, layers: int, vocabulary: int = 4096, kv_heads: int = 8) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 2048,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
    }


def gpt2(width: int, layers: int, vocabulary: int = 4096) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "n_embd": width,
        "n_layer": layers,
        "n_head": 8,
        "n_positions": 1024,
        "vocab_size": vocabulary,
    }


@dataclass(frozen=True)
class Case:
    """One job."""

    model: dict[str, Any]
    zero_stage: int
    precision: str = "fp32"
    activation_checkpointing: bool = False
    sequence_length: int = 64
    micro_batch_size: int = 1
    accumulation: int = 2
    world_size: int = 2
    zero: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        model_type, stage = self.model["model_type"], f"ZeRO-{self.zero_stage}"
        extras = [f"{key}={value:g}" for key, value in self.zero.items()]
        recompute = ["checkpointing"] if self.activation_checkpointing else []
        tokens = f"{self.micro_batch_size} x {self.sequence_length}"
        return ", ".join([model_type, stage, self.precision, f"{self.world_size} ranks", tokens, *recompute, *extras])

    def job(self, root: Path, name: str) -> TrainConfig:
        return TrainConfig.model_validate(
            {
                "run": {"name": name, "storage": str(root / "runs")},
                "model": {"config": self.model},
                "data": {
                    "files": [str(root / "corpus.jsonl")],
                    "tokenizer_vocab_size": 1024,
                    "sequence_length": self.sequence_length,
                    "heldout_fraction": 0.0,
                    "cache": str(root / "cache"),
                },
                "train": {
                    "steps": STEPS,
                    "global_batch_size": self.micro_batch_size * self.accumulation * self.world_size,
                    "micro_batch_size": self.micro_batch_size,
                    "zero_stage": self.zero_stage,
                    "precision": self.precision,
                    "activation_checkpointing": self.activation_checkpointing,
                    "replica_check_interval_steps": 0,
                },
                "checkpoint": {"interval_steps": 0, "snapshot_interval_steps": 0},
                "deepspeed": {"zero_optimization": self.zero} if self.zero else {},
            }
        )


SMALL_BUCKETS = {"reduce_bucket_size": 5_000_000}
WIDE = llama(768, 6)
TINY = Case(llama(64, 2, vocabulary=1024), 1)
CASES = (
    TINY,
    *(Case(WIDE, stage) for stage in range(4)),
    Case(llama(512, 8), 1, micro_batch_size=4, sequence_length=256),
    Case(llama(512, 8), 1, activation_checkpointing=True, micro_batch_size=4, sequence_length=256),
    Case(gpt2(768, 6), 1),
    Case(gpt2(768, 6), 3),
    Case(gpt2(640, 8), 2, micro_batch_size=4, sequence_length=128),
    Case(WIDE, 3, zero={**SMALL_BUCKETS, "sub_group_size": 5_000_000, "stage3_prefetch_bucket_size": 5_000_000}),
    Case(llama(768, 4), 1, "bf16", sequence_length=16),
    Case(llama(768, 4), 3, "bf16", sequence_length=16),
)
"""At most some 4 GB in all ranks together, and a minute each."""


@dataclass(frozen=True)
class Reading:
    """Bytes of this process."""

    own: int
    resident: int
    highest: int

    @staticmethod
    def now() -> Reading:
        rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
        own = sum(int(row.split()[1]) for row in rollup if row.startswith("Private_"))
        status = dict(row.split(":", 1) for row in Path("/proc/self/status").read_text().splitlines())
        resident, highest = (int(status[name].split()[0]) for name in ("VmRSS", "VmHWM"))
        return Reading(own * 1024, resident * 1024, highest * 1024)

    @property
    def highest_own(self) -> int:
        """What is shared is shared from the fork on."""
        return self.highest - (self.resident - self.own)


def no_saves(config: TrainConfig, connections: list[Connection]) -> None:
    """The helper of ranks that save nothing."""
    assert not list(requests(connections)), "nothing is saved"


def train(group: Group) -> dict[str, Any]:
    """Trains a case; every rank's own bytes at the start, when the engine stands, and at the highest."""
    torch.set_num_threads(1)
    readings = [Reading.now()]
    loop = Loop(group.config, group.world, group.cache, lambda event: None, Control)
    loop.build()
    readings.append(Reading.now())
    loop.load()
    while loop.step < STEPS:
        loop.train_step()
    readings.append(Reading.now())
    every: list[list[Reading]] = [[]] * group.world.world_size
    dist.all_gather_object(every, readings)
    return {
        "parameters": loop.built.shape.num_parameters,
        "start_bytes": max(ranks[0].own for ranks in every),
        "build_bytes": max(ranks[1].highest_own for ranks in every),
        "built_bytes": max(ranks[1].own for ranks in every),
        "measured_bytes": [ranks[2].highest_own for ranks in every],
        "shared_bytes": max(ranks[2].resident - ranks[2].own for ranks in every),
    }


def planned(case: Case, config: TrainConfig) -> tuple[int, Moment]:
    """Bytes that a rank is planned to have of its own, and the moment of its peak."""
    sizes = sizes_of(case.model, case.model["vocab_size"])
    assert sizes is not None
    setup = Setup.of(config, 1, case.world_size, on_gpu=False)
    peak = rank_memory(sizes, setup).peak
    return RANK_BYTES + with_reserve(peak, setup), peak


def measure(root: Path, cases: tuple[Case, ...]) -> Iterator[dict[str, Any]]:
    """A record per case."""
    (root / "corpus.jsonl").write_text(corpus())
    for number, case in enumerate(cases):
        config = case.job(root, f"case-{number}")
        cache = prepare(config.data, config.run.seed, lambda stage, fraction, detail: None).path
        run = RunFolder(config.run.storage, f"case-{number}")
        run.create("{}")
        run.claim_attempt(1, None, case.world_size, case.zero_stage)
        found = run_group(config, cache, case.world_size, 1, no_saves, train)
        bytes_planned, peak = planned(case, config)
        measured = max(found["measured_bytes"])
        yield {
            "case": case.name,
            **asdict(case),
            **found,
            "planned_bytes": bytes_planned,
            "planned_parts": {"moment": peak.name, **peak.parts},
            "ratio": bytes_planned / measured,
        }


def line(record: dict[str, Any]) -> str:
    """What a person reads."""
    met = "" if LEAST <= record["ratio"] <= MOST else "  MISSED"
    return (
        f"{record['case']}: {record['parameters'] / 1e6:.1f} M, planned {record['planned_bytes'] / 2**20:,.0f} MiB, measured "
        f"{max(record['measured_bytes']) / 2**20:,.0f} MiB, {record['ratio']:.3f}{met}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    prepare_environment()
    root = Path(tempfile.mkdtemp(prefix="zerofleet-plan-", dir="/var/tmp"))
    records = []
    try:
        for record in measure(root, tuple(case for case in CASES if arguments.only in case.name)):
            records.append(record)
            print(line(record), flush=True)
    finally:
        shutil.rmtree(root)
    missed = [record["case"] for record in records if not LEAST <= record["ratio"] <= MOST]
    print(f"{len(records) - len(missed)} of {len(records)} cases within the bar ({LEAST:g} to {MOST:g})")
    if arguments.output:
        result = {"benchmark": "plan_memory", "bar": [LEAST, MOST], "cases": records, "missed": missed}
        arguments.output.write_text(json.dumps({**result, "environment": fingerprint()}, indent=1) + "\n")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
