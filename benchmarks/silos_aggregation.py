"""The weighted mean of silos' deltas: throughput and peak memory against Flower's `aggregate` on the same arrays.

    pip install --no-deps --target PEER flwr==1.42.0 iterators pycryptodome
    PYTHONPATH=PEER zerofleet bench silos_aggregation --output benchmarks/results/DATE-aggregation.json [--pairs 15]

Throughput: all deltas lie in memory as fp32 arrays, a layer each, and both sides turn them into new arrays: Flower in the one thread that it has, ours by the outer
server's own code, a thread for each core. They take turns within a pair (ours, Flower, ours, ...), the first pair thrown away: it compiles and touches the memory. Ours with one thread
is measured in the same pairs, and so is the inspection of the deltas (finite? of what norm?), which Flower has not.

Memory: deltas lie in files, as they do where an aggregator receives them; what is counted is how far the resident memory of a fresh process rises from
before the aggregation to its peak, with the result kept. Flower's interface takes all arrays at once.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from zerofleet.benchmarks.statistics import median_interval
from zerofleet.cluster.outer.step import in_threads
from zerofleet.launch.environment import fingerprint
from zerofleet.trainer.silos.aggregation import Contribution, mean_delta
from zerofleet.trainer.silos.chunks import SUMMED_ELEMENTS, Chunk, chunks_of
from zerofleet.trainer.silos.inspection import inspect

Float32 = NDArray[np.float32]
Layers = dict[str, Float32]

BAR = 5.0
"""Ours over Flower's, in GB/s."""
LAYERS = {"embedding": (8192, 512), **{f"layer{number}.weight": (1536, 512) for number in range(16)}, "norm": (512,)}
"""16.8 M parameters: 67 MB a delta."""
MEMORY_LAYERS = {"weight": (4096, 1024)}
"""16.8 MB a delta, so that 64 of them and Flower's copies fit."""
MEMORY_SILOS = (4, 16, 64)


def deltas_of(num_silos: int, shapes: Mapping[str, tuple[int, ...]]) -> list[Layers]:
    """As they are after inner steps: small, and different in every silo."""
    draw = np.random.default_rng(0)
    return [
        {name: draw.standard_normal(shape, np.float32) * np.float32(1e-3) for name, shape in shapes.items()}
        for _ in range(num_silos)
    ]


def ours(deltas: list[Layers], tokens: list[int], num_threads: int = 1) -> Layers:
    means = {name: np.empty_like(layer) for name, layer in deltas[0].items()}
    flat_means = {name: mean.reshape(-1) for name, mean in means.items()}
    contributions = {str(silo): Contribution(tokens[silo], _reader(layers)) for silo, layers in enumerate(deltas)}

    def take(chunk: Chunk) -> None:
        mean = mean_delta(chunk, contributions, sum(tokens))
        flat_means[chunk.name][chunk.start : chunk.start + chunk.count] = mean

    in_threads(take, chunks_of({name: mean.size for name, mean in means.items()}, SUMMED_ELEMENTS), num_threads)
    return means


def inspected(deltas: list[Layers]) -> list[float]:
    """The silos' norms."""
    chunks = list(chunks_of({name: layer.size for name, layer in deltas[0].items()}))
    return [math.sqrt(math.fsum(map(inspect, map(_reader(layers), chunks)))) for layers in deltas]


def flower(deltas: list[Layers], tokens: list[int]) -> Layers:
    from flwr.server.strategy.aggregate import aggregate

    means = aggregate([(list(layers.values()), count) for layers, count in zip(deltas, tokens, strict=True)])
    return dict(zip(deltas[0], means, strict=True))


def throughput(num_silos: int, num_pairs: int) -> dict[str, Any]:
    deltas = deltas_of(num_silos, LAYERS)
    tokens = [1_000_000 + 1000 * silo for silo in range(num_silos)]
    num_cores = os.cpu_count() or 1
    arms: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours(deltas, tokens),
        "flower": lambda: flower(deltas, tokens),
        "ours_threads": lambda: ours(deltas, tokens, num_cores),
        "inspection": lambda: inspected(deltas),
    }
    gap = max(
        float(np.abs(mean - other).max())
        for mean, other in zip(arms["ours"]().values(), arms["flower"]().values(), strict=True)
    )
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(num_pairs + 1):
        for name, arm in arms.items():
            began = time.perf_counter()
            arm()
            if number:
                seconds[name].append(time.perf_counter() - began)
    total_bytes = num_silos * sum(layer.nbytes for layer in deltas[0].values())

    def ratio(arm: list[float]) -> dict[str, float]:
        return _named(median_interval([b / a for a, b in zip(arm, seconds["flower"], strict=True)]))

    with_inspection = [a + b for a, b in zip(seconds["ours"], seconds["inspection"], strict=True)]
    return {
        "num_silos": num_silos,
        "delta_mb": total_bytes / num_silos / 1e6,
        "num_threads": num_cores,
        "gb_per_s": {
            name: _named(median_interval([total_bytes / s / 1e9 for s in values])) for name, values in seconds.items()
        },
        "ratio": ratio(seconds["ours"]),
        "ratio_with_threads": ratio(seconds["ours_threads"]),
        "ratio_with_inspection": ratio(with_inspection),
        "largest_difference": gap,
        "seconds": seconds,
    }


def memory(kind: str, num_silos: int, path: Path) -> float:
    """Rise of the resident memory to its peak (MB), in this process: a fresh one, as freed memory that is used again does not count."""
    shape = MEMORY_LAYERS["weight"]
    tokens = [1000 + silo for silo in range(num_silos)]

    def read(chunk: Chunk) -> Float32:
        return np.fromfile(path, np.float32, chunk.count, offset=4 * chunk.start)

    def run(elements: int) -> Any:
        if kind == "flower":
            deltas = [{"weight": np.fromfile(path, np.float32, elements)} for _ in tokens]
            return flower(deltas, tokens)
        mean = np.empty(elements, np.float32)
        contributions = {str(silo): Contribution(count, read) for silo, count in enumerate(tokens)}

        def take(chunk: Chunk) -> None:
            mean[chunk.start : chunk.start + chunk.count] = mean_delta(chunk, contributions, sum(tokens))

        in_threads(take, chunks_of({"weight": elements}, SUMMED_ELEMENTS), os.cpu_count() or 1)
        return mean

    run(1)  # imports and compiles
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew here
    before = psutil.Process().memory_info().rss
    kept = run(shape[0] * shape[1])
    assert kept is not None
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    return (peak - before) / 1e6


def memory_table() -> dict[str, dict[str, float]]:
    """By kind and number of silos (MB), each in a process of its own."""
    (delta,) = deltas_of(1, MEMORY_LAYERS)
    table: dict[str, dict[str, float]] = {"ours": {}, "flower": {}}
    with tempfile.TemporaryDirectory(prefix="zf-silos-") as folder:
        path = Path(folder) / "delta.bin"
        delta["weight"].tofile(path)
        for kind, row in table.items():
            for num_silos in MEMORY_SILOS:
                row[str(num_silos)] = memory_of_fresh_process(kind, num_silos, path)
    return table


def memory_of_fresh_process(kind: str, num_silos: int, path: Path) -> float:
    command = [
        sys.executable,
        "-m",
        __spec__.name,
        "--memory-of",
        kind,
        str(num_silos),
        str(path),
    ]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _reader(layers: Layers) -> Callable[[Chunk], Float32]:
    flat = {name: layer.reshape(-1) for name, layer in layers.items()}
    return lambda chunk: flat[chunk.name][chunk.start : chunk.start + chunk.count]


def _named(interval: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip(("low", "median", "high"), interval, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--silos", type=int, default=8)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--memory-of", nargs=3, metavar=("KIND", "SILOS", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        kind, num_silos, path = arguments.memory_of
        print(memory(kind, int(num_silos), Path(path)))
        return
    if arguments.output is None:
        parser.error("--output is needed")
    environment = fingerprint()
    record = {"benchmark": "silos_aggregation", "bar": BAR, **throughput(arguments.silos, arguments.pairs)}
    record |= {
        "met": record["ratio_with_threads"]["low"] >= BAR,
        "peak_memory_mb": memory_table(),
        "memory_delta_mb": 4 * MEMORY_LAYERS["weight"][0] * MEMORY_LAYERS["weight"][1] / 1e6,
        "environment": environment,
    }
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({key: value for key, value in record.items() if key not in ("seconds", "environment")}, indent=1))


if __name__ == "__main__":
    main()
