"""Saving, restoring and resizing the state of a ZeRO-1 engine: zerofleet, torch.distributed.checkpoint and ds_to_universal in turn.

    zerofleet bench checkpoint --output benchmarks/results/DATE-checkpoint.json

All ways to save and to load take turns in the same two ranks, on the same engine with the same bytes, and a ratio compares
two trials of one round. The page cache is emptied before every save and before every cold load, which needs root. What was
saved is read back after that, and its state compared bitwise by digests. Stalls are upper bounds, with nothing overlapped;
where an arm is called overlapped, a forward pass runs meanwhile; the cost counts what the pass takes longer than alone. Then another engine, of another world
size and ZeRO stage, loads the same state both ways. Last, a small model trains, then one of the size that was saved, and steps of 4,096 tokens
with a save in flight are compared with as many steps without.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zerofleet.benchmarks.checkpoint_agent import serve_saves
from zerofleet.benchmarks.checkpoint_ranks import Round, measure_resizes, measure_slowdown
from zerofleet.benchmarks.checkpoint_saves import measure_saves
from zerofleet.benchmarks.disk import may_drop_caches
from zerofleet.benchmarks.peers.systems import corpus
from zerofleet.benchmarks.peers.universal import serve_conversions
from zerofleet.benchmarks.rank_group import run_group
from zerofleet.benchmarks.recovery import prepare_environment
from zerofleet.benchmarks.statistics import median_interval
from zerofleet.launch.environment import fingerprint
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.data.prepare import prepare
from zerofleet.trainer.run_folder import RunFolder

WORLD_SIZE, ZERO_STAGE = 2, 1
RESIZED_WORLD_SIZE, RESIZED_ZERO_STAGE = 1, 2
"""ds_to_universal cannot go from stage 1 to stage 3; to stage 2 it can."""


@dataclass(frozen=True)
class Bar:
    """What the median of `figure` of arm `over` by that of arm `under`, round by round, must not exceed, or must reach."""

    figure: str
    over: str
    under: str
    limit: float
    is_most: bool
    stretch: float | None = None

    @property
    def label(self) -> str:
        return f"{self.figure}: {self.over} over {self.under}"


BARS = (
    Bar("stall_s", "zerofleet", "dcp_save", 0.1, True),
    Bar("stall_s", "zerofleet", "dcp_process", 0.75, True),
    Bar("stall_s", "zerofleet_overlapped", "dcp_save", 0.1, True),
    Bar("stall_s", "zerofleet_overlapped", "dcp_process", 0.75, True),
    Bar("stall_s", "zerofleet_overlapped", "dcp_process_overlapped", 0.75, True),
    Bar("cost_s", "zerofleet_overlapped", "dcp_process_overlapped", 0.75, True),
    Bar("durable_s", "dcp_thread", "zerofleet", 1.8, False, stretch=2.5),
    Bar("durable_s", "dcp_process", "zerofleet", 1.8, False, stretch=2.5),
    Bar("load_s", "dcp_save", "zerofleet", 3.0, False),
    Bar("load_cold_s", "dcp_save", "zerofleet", 3.0, False),
    Bar("restore_s", "dcp_save", "zerofleet", 3.0, False),
    Bar("restore_cold_s", "dcp_save", "zerofleet", 3.0, False),
    Bar("stall_s", "zerofleet", "dcp_sharded_save", 0.1, True),
    Bar("durable_s", "dcp_sharded_thread", "zerofleet", 1.8, False, stretch=2.5),
    Bar("load_s", "dcp_sharded_save", "zerofleet", 3.0, False),
    Bar("load_cold_s", "dcp_sharded_save", "zerofleet", 3.0, False),
    Bar("resize_s", "ds_to_universal", "zerofleet", 10.0, False),
)
MOST_SLOWDOWN = 1.03
"""Seconds of a window with a save in it by those of as many steps without."""


@dataclass(frozen=True)
class Size:
    """What is saved, and what trains while a save runs: Llamas of a width, all of so many layers."""

    width: int
    layers: int
    training_widths: tuple[int, ...]


FULL = Size(width=1024, layers=6, training_widths=(256, 1024))
"""101 M parameters: 1.2 GB of state. The same model trains while it is saved, and one of 6.6 M, where what each save costs besides its bytes is felt."""
TINY = Size(width=32, layers=2, training_widths=(32, 16))


def job(root: Path, name: str, width: int, layers: int, **train: Any) -> TrainConfig:
    """A job of this benchmark: a wide Llama of a small vocabulary, in fp32."""
    model = {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
    }
    fields = {"steps": 10**6, "global_batch_size": 2, "micro_batch_size": 1, "precision": "fp32", **train}
    return TrainConfig.model_validate(
        {
            "run": {"name": name, "storage": str(root / "runs")},
            "model": {"config": model},
            "data": {
                "files": [str(root / "corpus.jsonl")],
                "tokenizer_vocab_size": 1024,
                "sequence_length": 128,
                "heldout_fraction": 0.0,
                "cache": str(root / "cache"),
            },
            "train": {"replica_check_interval_steps": 0, **fields},
            # Deleting old checkpoints is no part of a save that the peers have.
            "checkpoint": {"interval_steps": 0, "snapshot_interval_steps": 10**6, "keep_last": 10**6},
            "deepspeed": {"checkpoint": {"load_universal": True}} if name == "resized" else {},
        }
    )


def measure(root: Path, size: Size, num_rounds: int, num_pairs: int, is_cold: bool) -> dict[str, Any]:
    """Everything, one group of ranks after the other. Without `is_cold` the page cache is left alone."""
    (root / "corpus.jsonl").write_text(corpus())
    saves = job(root, "saves", size.width, size.layers, zero_stage=ZERO_STAGE)
    resized = job(root, "resized", size.width, size.layers, zero_stage=RESIZED_ZERO_STAGE)
    cache = prepare(saves.data, saves.run.seed, lambda stage, fraction, detail: None).path
    _claim(saves, WORLD_SIZE)
    found = run_group(saves, cache, WORLD_SIZE, 1, serve_saves, measure_saves, num_rounds, root, is_cold)
    folder = RunFolder(saves.run.storage, "saves")
    arguments = (num_rounds, folder, found["step"], root / "deepspeed", found.pop("digests"))
    _claim(resized, RESIZED_WORLD_SIZE)
    resizes = run_group(resized, cache, RESIZED_WORLD_SIZE, 1, serve_conversions, measure_resizes, *arguments)
    slowdowns = {}
    for width in size.training_widths:
        training = job(root, f"training-{width}", width, size.layers, global_batch_size=32, micro_batch_size=4)
        _claim(training, WORLD_SIZE)
        slowdowns[slowed(width, size.layers)] = run_group(
            training, cache, WORLD_SIZE, 1, serve_saves, measure_slowdown, num_pairs
        )
    return {**found, "resizes": resizes, "slowdown_pairs": slowdowns}


def slowed(width: int, layers: int) -> str:
    """The label of a comparison of steps."""
    return f"training {layers} layers of width {width} with a save in flight over without"


def _claim(config: TrainConfig, world_size: int) -> None:
    assert config.run.name is not None
    run = RunFolder(config.run.storage, config.run.name)
    run.create("{}")
    run.claim_attempt(1, None, world_size, config.train.zero_stage)


# -- what it comes to -----------------------------------------------------------------------------------------------------
def ratios(rounds: Sequence[Round], bar: Bar) -> list[float]:
    """Round by round."""
    return [r[bar.over][bar.figure] / r[bar.under][bar.figure] for r in rounds]


def verdict(values: Sequence[float], limit: float, is_most: bool, stretch: float | None = None) -> dict[str, Any]:
    """Median and 95 % interval of ratios, the bar, and whether the median meets it."""
    low, median, high = median_interval(values)
    found = {"low": low, "median": median, "high": high, "confidence": 0.95, "pairs": len(values)}
    bars = {"bar": f"{'at most' if is_most else 'at least'} {limit:g}", "met": _meets(median, limit, is_most)}
    if stretch is not None:
        bars |= {"stretch": stretch, "stretch_met": _meets(median, stretch, is_most)}
    return found | bars


def _meets(ratio: float, limit: float, is_most: bool) -> bool:
    return ratio <= limit if is_most else ratio >= limit


def summary(measured: dict[str, Any]) -> dict[str, Any]:
    """Ratios with their bars, and the median of every figure of every arm."""
    compared = {}
    for bar in BARS:
        rounds = measured["resizes"] if bar.figure == "resize_s" else measured["rounds"]
        compared[bar.label] = verdict(ratios(rounds, bar), bar.limit, bar.is_most, bar.stretch)
    for label, pairs in measured["slowdown_pairs"].items():
        compared[label] = verdict([pair["saving_s"] / pair["plain_s"] for pair in pairs], MOST_SLOWDOWN, is_most=True)
    return {"ratios": compared, "medians": medians(measured["rounds"]) | {"resize": medians(measured["resizes"])}}


def medians(rounds: Sequence[Round]) -> dict[str, Any]:
    """By arm and figure."""
    return {
        arm: {name: statistics.median(r[arm][name] for r in rounds) for name in figures}
        for arm, figures in rounds[0].items()
    }


def report(compared: dict[str, Any]) -> str:
    """A line per ratio."""
    lines = []
    for label, found in compared.items():
        interval = f"{found['median']:.3g} [{found['low']:.3g}, {found['high']:.3g}]"
        met = "met" if found["met"] else "MISSED"
        stretch = ""
        if "stretch" in found:
            stretch = f", stretch {found['stretch']:g} {'met' if found['stretch_met'] else 'missed'}"
        lines.append(f"{label}: {interval}, bar {found['bar']}: {met}{stretch}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pairs", type=int, default=20, help="windows with and without a save in flight")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="where 10 GB may be written")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    if not may_drop_caches():
        raise SystemExit(
            "the page cache must be emptied between trials: run this as root, outside of a container that forbids it"
        )
    prepare_environment()
    load_before = os.getloadavg()
    root = Path(tempfile.mkdtemp(prefix="zerofleet-checkpoint-", dir=arguments.folder))
    try:
        measured = measure(root, FULL, arguments.rounds, arguments.pairs, is_cold=True)
    finally:
        shutil.rmtree(root)
    record = {
        "benchmark": "checkpoint",
        "config": {
            "model": job(root, "saves", FULL.width, FULL.layers).model.config,
            "state_bytes": measured["state_bytes"],
            "world_size": WORLD_SIZE,
            "zero_stage": ZERO_STAGE,
            "resized": {"world_size": RESIZED_WORLD_SIZE, "zero_stage": RESIZED_ZERO_STAGE},
            "precision": "fp32",
        },
        **summary(measured),
        **{name: measured[name] for name in ("rounds", "resizes", "slowdown_pairs")},
        "environment": {**fingerprint(), "load_average_before": load_before},
    }
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["medians"], indent=1))
    print(report(record["ratios"]))
    sys.exit(not all(found["met"] for found in record["ratios"].values()))


if __name__ == "__main__":
    main()
