"""The list of benchmarks, and the series that are read out of the records that are there."""

import json
import statistics
from pathlib import Path

import pytest

from zerofleet.benchmarks.registry import BENCHMARKS, table

FOLDER = Path(__file__).parents[2] / "benchmarks"
NOT_ONE = {
    "__init__",
    "builds",
    "builds_rank",
    "checkout",
    "checkpoint_agent",
    "checkpoint_ranks",
    "checkpoint_saves",
    "command",
    "comparison",
    "disk",
    "extracts",
    "fault_places",
    "page",
    "preload",
    "rank_group",
    "ratio_intervals",
    "record",
    "recovery_trial",
    "registry",
    "simulation",
    "statistics",
}
"""Modules that benchmarks use, and what compares builds."""


def test_every_benchmark_is_in_the_list():
    assert {path.stem for path in FOLDER.glob("*.py")} - NOT_ONE == set(BENCHMARKS)
    assert all(f"{name} " in table() for name in BENCHMARKS)


def series_of(name: str, file: str, date: str = "2026-11-22") -> dict[str, list[float]]:
    record = json.loads((FOLDER / f"results/{date}-{file}.json").read_text())
    return {series.name: series.values for series in BENCHMARKS[name].series(record.get("measured", record))}


def test_overhead():
    found = series_of("overhead", "overhead")
    assert len(found["step over bare step"]) == 90
    assert statistics.median(found["step over bare step"]) == pytest.approx(1.0101, abs=1e-4)


def test_checkpoint():
    found = series_of("checkpoint", "checkpoint", "2026-11-23")
    assert len(found["zerofleet: stall_s"]) == len(found["dcp_process: stall_s"]) >= 5
    assert len(found["training 6 layers of width 256 with a save in flight over without"]) >= 20


def test_recovery():
    found = series_of("recovery", "recovery")
    assert {"zerofleet: recovery_s", "ray_train: cold_start_s", "torchrun: recovery_s"} <= set(found)


def test_goodput():
    assert 0.5 < series_of("goodput", "goodput")["goodput"][0] < 1


def test_loader():
    found = series_of("loader", "loader")
    assert min(found["512 tokens, zerofleet"]) > max(found["512 tokens, litdata"])
