"""The benchmarks that `zerofleet bench` knows: what each measures, what it needs, how long it takes, and where its figures lie in its record.

Light: nothing that is measured is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from zerofleet.benchmarks import extracts
from zerofleet.benchmarks.record import Series

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """One module `zerofleet.benchmarks.<name>` that takes `--output FILE` and writes its record there."""

    name: str
    measures: str
    """One line."""
    takes: str
    """On two cores, with its own defaults."""
    series: Callable[[Record], list[Series]]
    needs: str = ""
    """Besides the `train` extra."""
    torchrun_ranks: int = 0
    """Ranks to be started by torchrun; 0: it starts its own."""
    is_simulated: bool = False


_ALL = (
    Benchmark(
        "throughput",
        "tokens/s, MFU and memory over micro-batches, ranks, ZeRO stages",
        "2 min a case",
        extracts.throughput,
    ),
    Benchmark("overhead", "step time over a bare DeepSpeed loop", "3 min", extracts.overhead, torchrun_ranks=2),
    Benchmark(
        "peer_throughput",
        "step time against DeepSpeed, HF Trainer, Accelerate, Ray Train, DDP, FSDP2",
        "40 min",
        extracts.peer_throughput,
    ),
    Benchmark("speed", "what each decision of docs/speed.md is worth", "6 min", extracts.speed),
    Benchmark(
        "checkpoint",
        "saving, restoring and resizing against torch DCP and ds_to_universal",
        "25 min",
        extracts.checkpoint,
        needs="root, 10 GB of disk",
    ),
    Benchmark(
        "recovery",
        "kill -9 of a rank to the next new step, and cold starts, against peers",
        "25 min",
        extracts.recovery,
    ),
    Benchmark("goodput", "goodput under a fault every minute", "35 min", extracts.goodput),
    Benchmark(
        "controller", "polls, verdicts and plans with 10,000 ranks", "3 min", extracts.controller, is_simulated=True
    ),
    Benchmark(
        "loader",
        "tokens/s and core of the feed against litdata and MosaicML streaming",
        "5 min",
        extracts.loader,
        "both peers",
    ),
    Benchmark("preparation", "preparing 1 GB of text against the tokenizer alone", "1 h", extracts.preparation),
    Benchmark("plan_memory", "planned against measured memory of ranks", "15 min", extracts.plan_memory),
    Benchmark("silos", "DiLoCo over silos against data parallel: loss and bytes", "2 h", extracts.silos),
    Benchmark(
        "silos_aggregation",
        "mean of deltas against Flower: GB/s and memory",
        "3 min",
        extracts.silos_aggregation,
        "flwr",
    ),
    Benchmark("silo_faults", "what faults cost a run of silos", "20 min", extracts.silo_faults),
    Benchmark("fault_matrix", "every fault at every phase", "30 min", extracts.fault_matrix, "root"),
    Benchmark(
        "regression",
        "counts, bytes and ratios that no machine changes, against the agreed ones",
        "1 min",
        extracts.regression,
    ),
    Benchmark("compare_power", "what `bench compare` finds of a planted slowdown", "18 min", extracts.compare_power),
)
BENCHMARKS = {benchmark.name: benchmark for benchmark in _ALL}


def table() -> str:
    """A line per benchmark."""
    lines = []
    for each in _ALL:
        needs = f"; needs {each.needs}" if each.needs else ""
        simulated = "; simulated" if each.is_simulated else ""
        lines.append(f"{each.name:18} {each.measures} ({each.takes}{needs}{simulated})\n")
    return "".join(lines)
