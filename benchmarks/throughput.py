"""Tokens per second, MFU and peak memory of the real trainer, over micro-batches, ranks and ZeRO stages.

    zerofleet bench throughput --output DATE-throughput.json
    zerofleet bench throughput --micro-batch 2 4 8 --ranks 1 2 --stages 1 3 train.precision=bf16

Each case is a job of the recipe with one of each list; the global batch stays the recipe's. Its ranks are forked from one pre-imported process and run the
training loop itself (`trainer/loop.py`), without Ray and without saves; the first steps, in which memory is touched and AdamW's moments are
made, do not count. Every step's seconds are kept; rates are of the median step. Three shares of the same peak:

- `mfu`: the FLOPs that the model needs, 6 N + 12 L H Q T per token (Chowdhery et al. 2022, PaLM, appendix B).
- `mfu_causal`: the same with the half of the attention that a causal mask keeps.
- `hfu`: the FLOPs that are done, PaLM's count and, with activation checkpointing, the layers' forward once more (Korthikanti et al. 2022, 2.2).

The peak is the vendor's for a known GPU in 16 bits, else that of a matmul, measured on all ranks at once before training. Memory is what a rank has of its own:
on a GPU what torch had allocated, on a CPU the highest resident set less what all ranks share (`plan_memory.py`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from zerofleet.benchmarks.plan_memory import no_saves
from zerofleet.benchmarks.rank_group import Group, run_group
from zerofleet.benchmarks.recovery import prepare_environment
from zerofleet.launch.config import JobConfig, load_job, override_job
from zerofleet.launch.environment import fingerprint
from zerofleet.trainer.data.prepare import prepare
from zerofleet.trainer.errors import UserError, ZerofleetError
from zerofleet.trainer.events import Control, Event
from zerofleet.trainer.loop import Loop
from zerofleet.trainer.memory_use import highest_own_bytes
from zerofleet.trainer.model import ModelShape, num_elements
from zerofleet.trainer.run_folder import RunFolder

RECIPE = Path(__file__).parents[1] / "launch/recipes/quickstart.yaml"
LONG = 1_000_000
"""Steps of the job: more than are run, so that the schedule is past its warmup and far from its end."""


@dataclass(frozen=True)
class Case:
    """One job."""

    micro_batch_size: int
    ranks: int
    zero_stage: int

    @property
    def name(self) -> str:
        return f"micro-batch {self.micro_batch_size}, {self.ranks} ranks, ZeRO-{self.zero_stage}"

    def job(self, job: JobConfig, root: Path, name: str) -> JobConfig:
        """UserError when a rank would get nothing but padding."""
        global_batch = job.train.global_batch_size
        if self.micro_batch_size * self.ranks > global_batch:
            raise UserError(
                f"{self.name} is more than a step: {self.micro_batch_size} x {self.ranks} sequences, and train.global_batch_size is {global_batch}. "
                f"Set train.global_batch_size={self.micro_batch_size * self.ranks} for all cases"
            )
        changes = {
            "run.name": name,
            "run.storage": root / "runs",
            "train.micro_batch_size": self.micro_batch_size,
            "train.zero_stage": self.zero_stage,
            "train.steps": LONG,
            "train.replica_check_interval_steps": 0,
            "checkpoint.interval_steps": 0,
            "checkpoint.snapshot_interval_steps": 0,
        }
        return override_job(job, [f"{key}={value}" for key, value in changes.items()])


def cases(job: JobConfig, micro_batches: list[int], ranks: list[int], stages: list[int]) -> list[Case]:
    """All combinations; a list that is empty is the recipe's own value."""
    own = job.train
    return [
        Case(*each)
        for each in itertools.product(
            micro_batches or [own.micro_batch_size], ranks or [job.cluster.ranks_per_node], stages or [own.zero_stage]
        )
    ]


def hardware_flops_per_token(
    shape: ModelShape, head_elements: int, sequence_length: int, is_checkpointed: bool
) -> float:
    """PaLM's FLOPs, and with activation checkpointing a second forward of all layers: a third of what they take, the head excepted."""
    flops = shape.flops_per_token(sequence_length)
    return flops + (flops - 6 * head_elements) / 3 if is_checkpointed else flops


def train(group: Group, warm_up_steps: int, steps: int) -> dict[str, Any] | None:
    """On every rank; rank 0 returns the figures of the steps that count."""
    torch.set_num_threads(1)
    events: list[Event] = []
    loop = Loop(group.config, group.world, group.cache, events.append, Control)
    loop.build()
    loop.load()
    for _ in range(warm_up_steps + steps):
        loop.train_step()
    loop.reporter.release()
    peaks: list[int] = [0] * group.world.world_size
    dist.all_gather_object(peaks, peak_bytes(loop.device))
    if group.world.rank:
        return None
    counted = [event for event in events if event.kind == "step"][warm_up_steps:]
    assert len(counted) == steps, "every step is reported"
    shape, length = loop.built.shape, group.config.data.sequence_length
    head = loop.built.model.get_output_embeddings()
    return {
        "steps_s": [event.duration_s for event in counted],
        "tokens": [event.data["tokens"] for event in counted],
        "losses": [event.data["loss"] for event in counted],
        "peak_bytes": peaks,
        "parameters": shape.num_parameters,
        "device": str(loop.device),
        "peak_flops_per_rank": loop.peak.flops_per_second,
        "peak_source": loop.peak.source,
        "flops_per_token": {
            "mfu": shape.flops_per_token(length),
            "mfu_causal": shape.flops_per_token(length, causal=True),
            "hfu": hardware_flops_per_token(
                shape,
                0 if head is None else num_elements(head.weight),
                length,
                group.config.train.activation_checkpointing,
            ),
        },
    }


def peak_bytes(device: torch.device) -> int:
    """The most that this rank has had of its own."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else highest_own_bytes()


def figures(found: dict[str, Any], ranks: int) -> dict[str, float]:
    """Rates of the median step, in which as many tokens as in the mean step are fed."""
    rate = statistics.fmean(found["tokens"]) / statistics.median(found["steps_s"])
    peak = found["peak_flops_per_rank"] * ranks
    shares = {name: rate * flops / peak for name, flops in found["flops_per_token"].items()}
    return {"tokens_per_second": rate, **shares}


def measure(job: JobConfig, every: list[Case], root: Path, warm_up_steps: int, steps: int) -> Iterator[dict[str, Any]]:
    """A record per case."""
    cache = prepare(job.data, job.run.seed, lambda stage, fraction, detail: None).path
    for number, case in enumerate(every):
        config = case.job(job, root, f"case-{number}").train_config()
        run = RunFolder(config.run.storage, f"case-{number}")
        run.create("{}")
        run.claim_attempt(1, None, case.ranks, case.zero_stage)
        found = run_group(config, cache, case.ranks, 1, no_saves, train, warm_up_steps, steps)
        yield {"case": case.name, **asdict(case), **figures(found, case.ranks), **found}


def line(record: dict[str, Any]) -> str:
    shares = ", ".join(f"{name} {record[name]:.1%}" for name in ("mfu", "mfu_causal", "hfu"))
    return (
        f"{record['case']}: {record['tokens_per_second']:,.0f} tokens/s, {shares}, a step {statistics.median(record['steps_s']):.3g} s, "
        f"{max(record['peak_bytes']) / 2**20:,.0f} MiB per rank"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--micro-batch", type=int, nargs="+", default=[], help="sizes to try (default: the recipe's)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[], help="numbers of ranks to try")
    parser.add_argument("--stages", type=int, nargs="+", default=[], choices=(0, 1, 2, 3), help="ZeRO stages to try")
    parser.add_argument("--steps", type=int, default=20, help="that count, in each case")
    parser.add_argument("--warm-up-steps", type=int, default=4)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_intermixed_args()
    prepare_environment()
    root, records = Path(tempfile.mkdtemp(prefix="zerofleet-throughput-", dir="/var/tmp")), []
    try:
        job = load_job(arguments.recipe, arguments.overrides)
        every = cases(job, arguments.micro_batch, arguments.ranks, arguments.stages)
        for case in every:
            case.job(job, root, "check")
        for record in measure(job, every, root, arguments.warm_up_steps, arguments.steps):
            records.append(record)
            print(line(record), flush=True)
    except ZerofleetError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    finally:
        shutil.rmtree(root)
    sections = job.train_config().model_dump(mode="json", include={"model", "data", "train", "deepspeed"})
    result = {"benchmark": "throughput", "config": sections, "cases": records, "environment": fingerprint()}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
