"""Tokens per second and core of zerofleet's feed, litdata and MosaicML streaming, fully shuffled; and the time to resume anywhere.

    zerofleet bench loader --output benchmarks/results/DATE-loader.json

Each loader lives in a process of its own, bound to the same core, and reads the same sequences from files of its own format that are
in the page cache. They take turns for a second each, in an order that is turned around every round, and a ratio compares two of one
round. What counts is processor time, of all threads of the process: the wall clock of a shared machine counts others' work too, and
is told beside it. Zerofleet plans the order and hashes every sequence for the ledger meanwhile, as in a run; the peers do not.

Resuming is measured on a billion simulated sequences, whose tokens are all zero and take no memory: sought to a random position of a
random epoch, the step planned and the first block made. It is the arithmetic that is measured; a disk adds what it takes to read.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from zerofleet.benchmarks.peers.loaders import LOADERS, Corpus, write_litdata, write_streaming
from zerofleet.benchmarks.statistics import median_interval
from zerofleet.launch.environment import fingerprint
from zerofleet.trainer.allocator import keep_freed_memory
from zerofleet.trainer.batch import BatchPlan
from zerofleet.trainer.config import DEFAULT_SILO
from zerofleet.trainer.data.feed import Feed
from zerofleet.trainer.data.sequences import SequenceStore

BARS = {("zerofleet", "litdata"): 5.0, ("zerofleet", "streaming"): 40.0}
"""Tokens per second of processor time of the first over those of the second: at least so much."""
RESUME_BAR_S = 5e-3
BILLION = 10**9
PEERS = ("litdata", "streaming")
INSTALL = """\
python -m venv PEERS
PEERS/bin/pip install --no-deps litdata==0.2.76 lightning-utilities==0.15.3 tifffile==2026.3.3 obstore==0.12.1 \\
    mosaicml-streaming==0.13.0 Brotli==1.2.1 zstd==1.5.7.2 python-snappy==0.7.3 cramjam==2.14.0 catalogue==2.0.10 pillow==13.0.0
PYTHONPATH=PEERS/lib/python3.11/site-packages zerofleet bench loader ..."""
"""Without --no-deps they would take other versions of torch, numpy and transformers with them."""

Trial = dict[str, float]


# -- one loader in a process --------------------------------------------------------------------------------------------
def serve(name: str, corpus: Corpus, core: int, connection: Connection) -> None:
    """Answers each number of seconds that it is sent with what it did in so much processor time."""
    os.sched_setaffinity(0, {core})
    keep_freed_memory()  # as ranks do
    blocks = LOADERS[name](corpus)
    while (seconds := connection.recv()) is not None:
        gc.collect()
        connection.send(_consume(blocks, seconds))


def _consume(blocks: Any, seconds: float) -> Trial:
    num_tokens, began, cpu_began = 0, time.perf_counter(), time.process_time()
    while (cpu_s := time.process_time() - cpu_began) < seconds:
        _, labels = next(blocks)
        num_tokens += labels.numel()
    return {"tokens": num_tokens, "cpu_s": cpu_s, "wall_s": time.perf_counter() - began}


class Served:
    """A loader's process, from the parent's side."""

    def __init__(self, name: str, corpus: Corpus, core: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(name, corpus, core, theirs))
        self._process.start()
        theirs.close()

    def trial(self, seconds: float) -> Trial:
        """EOFError when the process died."""
        self._connection.send(seconds)
        answer: Trial = self._connection.recv()
        return answer

    def close(self) -> None:
        self._connection.send(None)
        self._process.join(30)


def measure_loaders(
    corpus: Corpus, names: Sequence[str], num_rounds: int, seconds: float, core: int
) -> list[dict[str, Trial]]:
    """Rounds of one trial each, after a trial that does not count: it reads the files and starts the first epoch."""
    served = {name: Served(name, corpus, core) for name in names}
    try:
        for name in names:
            served[name].trial(seconds)
        rounds = []
        for index in range(num_rounds):
            order = names if index % 2 == 0 else names[::-1]
            rounds.append({name: served[name].trial(seconds) for name in order})
    finally:
        for one in served.values():
            one.close()
    return rounds


# -- resuming -----------------------------------------------------------------------------------------------------------
def measure_resumes(sequence_length: int, num_trials: int, seed: int = 0) -> list[Trial]:
    """Seconds (`cpu_s` of the processor, `wall_s`) from a store to the first block of 16 sequences, each time at another position."""
    num_tokens = BILLION * sequence_length + 1
    tokens = np.broadcast_to(np.zeros((), "<u2"), num_tokens)  # takes no memory
    plan, trials, draw = BatchPlan.of(256, 16, 1), [], np.random.default_rng(seed)
    for step in draw.integers(0, 100 * BILLION // plan.global_batch_size, num_trials).tolist():
        began, cpu_began = time.perf_counter(), time.process_time()
        store = SequenceStore(tokens, np.array([num_tokens]), sequence_length)
        feed = Feed(store, plan, seed, DEFAULT_SILO, ())
        block = next(iter(feed.micro_batches(feed.step_plan(step), 0)))
        trials.append({"cpu_s": time.process_time() - cpu_began, "wall_s": time.perf_counter() - began})
        assert block.num_sequences == plan.micro_batch_size and store.num_sequences == BILLION
    return trials


# -- what it comes to ---------------------------------------------------------------------------------------------------
def rate(trial: Trial, clock: str) -> float:
    """Tokens per second of `cpu_s` or `wall_s`."""
    return trial["tokens"] / trial[clock]


def compared(rounds: Sequence[dict[str, Trial]], over: str, under: str, clock: str = "cpu_s") -> dict[str, float]:
    """Median over the rounds of the one's tokens/s by the other's, with its 95 % interval."""
    low, median, high = median_interval([rate(r[over], clock) / rate(r[under], clock) for r in rounds])
    return {"low": low, "median": median, "high": high, "confidence": 0.95, "pairs": len(rounds)}


def summary(rounds: Sequence[dict[str, Trial]]) -> dict[str, Any]:
    """Median tokens/s of each loader, and zerofleet over the others."""
    rates = {
        name: {clock: statistics.median(rate(r[name], clock) for r in rounds) for clock in ("cpu_s", "wall_s")}
        for name in rounds[0]
    }
    ratios = {}
    for (over, under), bar in BARS.items():
        found: dict[str, Any] = compared(rounds, over, under)
        ratios[f"{over} over {under}"] = {**found, "bar": bar, "met": found["median"] >= bar}
    for under in rounds[0]:
        if under != "zerofleet" and ("zerofleet", under) not in BARS:
            ratios[f"zerofleet over {under}"] = compared(rounds, "zerofleet", under)
    return {"tokens_per_s": rates, "ratios": ratios}


def resumed(trials: Sequence[Trial]) -> dict[str, Any]:
    """The median and the slowest, against the bar: processor time as above."""
    slowest = max(trial["cpu_s"] for trial in trials)
    return {
        "samples": BILLION,
        "trials": len(trials),
        "median": {clock: statistics.median(trial[clock] for trial in trials) for clock in ("cpu_s", "wall_s")},
        "slowest": {clock: max(trial[clock] for trial in trials) for clock in ("cpu_s", "wall_s")},
        "bar_s": RESUME_BAR_S,
        "met": slowest < RESUME_BAR_S,
    }


def report(results: dict[str, Any]) -> str:
    """A line per figure."""
    lines = []
    for length, found in results["loaders"].items():
        for name, rates in found["tokens_per_s"].items():
            lines.append(
                f"{length} tokens, {name}: {rates['cpu_s'] / 1e6:.3g} M tokens/s and core (wall {rates['wall_s'] / 1e6:.3g})"
            )
        for label, ratio in found["ratios"].items():
            bar = f", bar {ratio['bar']:g}: {'met' if ratio['met'] else 'MISSED'}" if "bar" in ratio else ""
            lines.append(
                f"{length} tokens, {label}: {ratio['median']:.3g} [{ratio['low']:.3g}, {ratio['high']:.3g}]{bar}"
            )
    resume = results["resume"]
    figures = ", ".join(
        f"{which} {resume[which]['cpu_s'] * 1e3:.2f} ms (wall {resume[which]['wall_s'] * 1e3:.2f})"
        for which in ("median", "slowest")
    )
    met = "met" if resume["met"] else "MISSED"
    lines.append(
        f"resume at {resume['samples']:,} samples, {resume['trials']} times: {figures}, bar {resume['bar_s'] * 1e3:g} ms: {met}"
    )
    return "\n".join(lines)


def prepared(folder: Path, sequence_length: int, num_tokens: int, block_size: int) -> Corpus:
    """The corpus in all formats."""
    folder.mkdir()
    corpus = Corpus(folder, sequence_length, num_tokens // sequence_length, block_size)
    writers: tuple[Callable[[Corpus], None], ...] = (Corpus.write, write_litdata, write_streaming)
    for write in writers:
        write(corpus)
    return corpus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1.0, help="processor time of each trial")
    parser.add_argument("--tokens", type=int, default=2**27, help="of the corpus, 2 bytes each in every format")
    parser.add_argument("--sequence-lengths", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--block-size", type=int, default=16, help="sequences per block")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument(
        "--folder", type=Path, default=Path("/var/tmp"), help="where three copies of the corpus may be written"
    )
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if any(find_spec(peer) is None for peer in PEERS):
        raise SystemExit(f"{' and '.join(PEERS)} are to be compared with, and not installed:\n{INSTALL}")
    load_before, loaders, rounds = os.getloadavg(), {}, {}
    with tempfile.TemporaryDirectory(prefix="zerofleet-loader-", dir=arguments.folder) as root:
        for length in arguments.sequence_lengths:
            corpus = prepared(Path(root) / str(length), length, arguments.tokens, arguments.block_size)
            rounds[length] = measure_loaders(corpus, list(LOADERS), arguments.rounds, arguments.seconds, arguments.core)
            loaders[length] = summary(rounds[length])
        resumes = measure_resumes(arguments.sequence_lengths[0], 1000)
    results: dict[str, Any] = {
        "benchmark": "loader",
        "config": {
            "tokens": arguments.tokens,
            "block_size": arguments.block_size,
            "peers": {peer: version({"streaming": "mosaicml-streaming"}.get(peer, peer)) for peer in PEERS},
        },
        "loaders": loaders,
        "resume": resumed(resumes),
        "rounds": rounds,
        "environment": {**fingerprint(), "load_average_before": load_before},
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")
    print(report(results))
    met = [ratio["met"] for found in loaders.values() for ratio in found["ratios"].values() if "met" in ratio]
    sys.exit(not (all(met) and results["resume"]["met"]))


if __name__ == "__main__":
    main()
