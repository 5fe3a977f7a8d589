"""The planner against real ranks: peak memory of every rank of medium models, over stages, precisions and three families.

    zerofleet bench plan_memory --output benchmarks/results/DATE-plan-memory.json
    zerofleet bench plan_memory --recipe launch/recipes/llama_1b.yaml    # a recipe with Ray beside it, all of its steps

Ranks give back what they free (`train.keep_freed_memory=false`), and the plan is made for that: residence then follows what is in use. What is
counted: the most pages that a rank has had for itself since its engine stood: the highest resident set (VmHWM, set back before each forward, backward
and optimizer's step), less what it shares with the process that it was forked from (torch, DeepSpeed, transformers), which is there once per node. Each
case trains three steps of two micro-steps on made-up text, without saving. A model of almost no parameters shows what a rank has of
its own whatever it trains; it is no part of the bar.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from zerofleet.benchmarks.peers.systems import corpus
from zerofleet.benchmarks.rank_group import Group, requests, run_group
from zerofleet.benchmarks.recovery import prepare_environment
from zerofleet.launch.config import load_job
from zerofleet.launch.environment import fingerprint
from zerofleet.launch.planning import measured_steps
from zerofleet.launch.planning.job_plan import plan_job
from zerofleet.launch.planning.model_shape import model_of
from zerofleet.launch.planning.node_profile import node_for
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.data.prepare import prepare
from zerofleet.trainer.events import Control
from zerofleet.trainer.loop import Loop
from zerofleet.trainer.residence import Residence, free_bytes
from zerofleet.trainer.run_folder import RunFolder
from zerofleet.trainer.sizing import sizes_of
from zerofleet.trainer.sizing.memory import RankMemory, rank_memory
from zerofleet.trainer.sizing.node import rank_bytes, with_reserve
from zerofleet.trainer.sizing.setup import Setup

STEPS = 3
"""AdamW's moments appear in the first step: from the second on everything is there."""
OFFLOADS = ("offload_optimizer", "offload_param")
"""On CPUs what is offloaded stays in the same memory, but DeepSpeed holds more of it, and in other buffers."""
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


def gpt_neox(width: int, layers: int, vocabulary: int = 4096) -> dict[str, Any]:
    return {
        "model_type": "gpt_neox",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "max_position_embeddings": 2048,
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
    moments_precision: str = "fp32"
    zero: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        model_type, stage = self.model["model_type"], f"ZeRO-{self.zero_stage}"
        extras = [f"{key}={value:g}" for key, value in self.zero.items() if key not in OFFLOADS]
        extras += [f"{key} to cpu" for key in OFFLOADS if key in self.zero]
        extras += ["bf16 moments"] if self.moments_precision == "bf16" else []
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
                    "moments_precision": self.moments_precision,
                    "keep_freed_memory": False,
                    "replica_check_interval_steps": 0,
                },
                "checkpoint": {"interval_steps": 0, "snapshot_interval_steps": 0},
                "deepspeed": {"zero_optimization": self.zero} if self.zero else {},
            }
        )


SMALL_BUCKETS = {"reduce_bucket_size": 5_000_000}
OFFLOADED: dict[str, Any] = {OFFLOADS[0]: {"device": "cpu"}}
WIDE = llama(1024, 8)
LONG: dict[str, Any] = {"micro_batch_size": 4, "sequence_length": 256}
TINY = Case(llama(64, 2, vocabulary=1024), 1)
CASES = (
    TINY,
    *(Case(WIDE, stage) for stage in range(4)),
    Case(llama(512, 12), 1, **LONG),
    Case(llama(512, 12), 1, activation_checkpointing=True, **LONG),
    Case(gpt2(1024, 8), 1),
    Case(gpt2(768, 12), 2, micro_batch_size=4, sequence_length=128),
    Case(gpt2(1024, 8), 3),
    Case(gpt_neox(1024, 8), 2, "bf16", sequence_length=16),
    Case(WIDE, 3, zero={**SMALL_BUCKETS, "sub_group_size": 5_000_000, "stage3_prefetch_bucket_size": 5_000_000}),
    Case(WIDE, 0, "bf16", sequence_length=16),
    Case(WIDE, 1, "bf16", sequence_length=16),
    Case(WIDE, 3, "bf16", sequence_length=16),
    Case(WIDE, 3, "bf16", sequence_length=16, moments_precision="bf16", zero={"sub_group_size": 5_000_000}),
    Case(llama(1024, 4, vocabulary=32000), 3, "bf16", sequence_length=64, moments_precision="bf16"),
    Case(llama(512, 12), 1, "bf16", accumulation=1, **LONG),
    Case(WIDE, 1, "bf16", sequence_length=16, zero=OFFLOADED),
    Case(WIDE, 2, zero=OFFLOADED),
    Case(gpt_neox(1024, 8), 2, "bf16", sequence_length=16, zero=OFFLOADED),
    Case(WIDE, 3, "bf16", sequence_length=16, zero=OFFLOADED | {OFFLOADS[1]: {"device": "cpu"}}),
    Case(gpt2(1024, 8), 3, zero=OFFLOADED),
)
"""100 to 170 million parameters but for the two whose activations matter; at most some 6 GB in both ranks together."""


def no_saves(config: TrainConfig, connections: list[Connection]) -> None:
    """The helper of ranks that save nothing."""
    assert not list(requests(connections)), "nothing is saved"


def train(group: Group) -> dict[str, Any]:
    """Trains a case; every rank's own bytes at the start, when the engine stands, and at the highest."""
    torch.set_num_threads(1)
    readings = {"start": Residence.of("self")}
    loop = Loop(group.config, group.world, group.cache, lambda event: None, Control)
    loop.build()
    readings["build"] = Residence.of("self")
    loop.load()
    phases = _phases(loop.engine)
    while loop.step < STEPS:
        loop.train_step()
    readings |= {name: max(found, key=lambda each: each.highest_own) for name, found in phases().items()}
    every: list[dict[str, Residence]] = [{}] * group.world.world_size
    dist.all_gather_object(every, readings)
    peaks = {name: [ranks[name].highest_own for ranks in every] for name in readings}
    return {
        "parameters": loop.built.shape.num_parameters,
        "start_bytes": max(ranks["start"].own for ranks in every),
        "built_bytes": max(ranks["build"].own for ranks in every),
        "shared_bytes": max(ranks["build"].resident - ranks["build"].own for ranks in every),
        "peak_bytes": {name: max(found) for name, found in peaks.items() if name != "start"},
        "measured_bytes": [max(peaks[name][rank] for name in PHASES) for rank in range(group.world.world_size)],
    }


PHASES = ("forward", "backward", "step")


def _phases(engine: Any) -> Callable[[], dict[str, list[Residence]]]:
    """The highest of every forward, backward and optimizer's step from here on: the kernel's mark is read and set back between them. Returns
    what ends the last one and tells all."""
    found: dict[str, list[Residence]] = {name: [] for name in PHASES}
    running = ["forward"]

    def begin(phase: str) -> None:
        found[running[0]].append(Residence.of("self"))
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): VmHWM is set to what is resident now
        running[0] = phase

    def marked(call: Callable[..., Any], phase: str, following: str) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            begin(phase)
            value = call(*arguments, **options)
            begin(following)
            return value

        return run

    def told() -> dict[str, list[Residence]]:
        begin("forward")
        return found

    Path("/proc/self/clear_refs").write_text("5")
    engine.backward = marked(engine.backward, "backward", "step")
    engine.step = marked(engine.step, "step", "forward")
    return told


def planned(case: Case, config: TrainConfig) -> tuple[int, RankMemory]:
    """Bytes that a rank is planned to have of its own, and what they are made of."""
    sizes = sizes_of(case.model, case.model["vocab_size"])
    assert sizes is not None
    setup = Setup.of(config, 1, case.world_size, on_gpu=False)
    memory = rank_memory(sizes, setup)
    return rank_bytes(setup) + with_reserve(memory.peak, setup) + memory.offloaded_bytes, memory


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
        bytes_planned, memory = planned(case, config)
        yield {
            "case": case.name,
            **asdict(case),
            **found,
            "planned_bytes": bytes_planned,
            "planned_moments": {moment.name: moment.parts for moment in memory.moments},
            "ratio": bytes_planned / max(found["measured_bytes"]),
        }


def of_recipe(path: Path) -> dict[str, Any]:
    """A recipe's own steps as `submit` trains them, with Ray, driver and node agent beside: a record like the others'."""
    job = load_job(str(path), [])
    plan = plan_job(job, model_of(job), node_for(job, None))
    free = free_bytes()
    found = measured_steps.measure(job, path, job.train.steps)
    return {
        "case": f"{path.name}, {job.train.steps} steps",
        "parameters": plan.model.sizes.parameters,
        "plan": plan.to_dict(),
        "planned_bytes": plan.footprint.bytes_per_rank,
        "measured_bytes": found.own_bytes,
        "ratio": plan.footprint.bytes_per_rank / max(found.own_bytes),
        "node_bytes": {"planned": plan.footprint.host_bytes, "taken": free - found.least_free_bytes},
        "steps_s": found.steps_s,
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
    parser.add_argument("--recipe", type=Path, help="this recipe in place of the cases")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    prepare_environment()
    root = Path(tempfile.mkdtemp(prefix="zerofleet-plan-", dir="/var/tmp"))
    chosen = tuple(case for case in CASES if arguments.only in case.name)
    records: list[dict[str, Any]] = []
    try:
        for record in [of_recipe(arguments.recipe)] if arguments.recipe else measure(root, chosen):
            records.append(record)
            print(line(record), flush=True)
            if arguments.output:  # after each: a case may run out of memory
                write(arguments.output, records)
    finally:
        shutil.rmtree(root)
    missed = missed_of(records)
    print(f"{len(missed)} of {len(records)} cases are not within the bar ({LEAST:g} to {MOST:g})")
    sys.exit(bool(missed))


def missed_of(records: list[dict[str, Any]]) -> list[str]:
    return [r["case"] for r in records if r["case"] != TINY.name and not LEAST <= r["ratio"] <= MOST]


def write(path: Path, records: list[dict[str, Any]]) -> None:
    result = {"benchmark": "plan_memory", "bar": [LEAST, MOST], "cases": records, "missed": missed_of(records)}
    path.write_text(json.dumps({**result, "environment": fingerprint()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
