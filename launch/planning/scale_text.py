"""Simulated runs side by side, as a table in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]


def text_of(records: Sequence[Record]) -> str:
    """One column per run."""
    first = records[0]["scenario"]
    rows = [_row("simulated: GPUs", [f"{r['scenario']['gpus']:,}" for r in records])]
    rows.append("|" + "---|" * (len(records) + 1))
    rows += [_row(name, [tell(record) for record in records]) for name, tell in _ROWS]
    what = f"{first['model']['parameters'] / 1e9:.2f} B parameters under ZeRO-{first['zero_stage']}, {first['days']:g} days, seed {first['seed']}"
    ends = [
        f"{r['scenario']['gpus']:,} GPUs: {r['simulated']['state']}: {r['simulated']['why']}"
        for r in records
        if r["simulated"]["state"] == "FAILED"
    ]
    notes = [f"Simulated: {what}, step {first['costs']['step_s']:g} s. Failures: {first['rates']['source']}.", *ends]
    return "\n".join([*rows, "", *notes]) + "\n"


def _row(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def seconds(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 7200:
        return f"{value / 3600:.1f} h"
    return f"{value:.0f} s" if value >= 10 else f"{value:.2g} s"


def size(value: float) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value / 1e3:.3g} kB"


def _closed(key: str, tell: Callable[[Any], str]) -> Callable[[Record], str]:
    return lambda record: tell(record["closed_forms"][key])


def _simulated(key: str, tell: Callable[[Any], str]) -> Callable[[Record], str]:
    return lambda record: tell(record["simulated"][key])


def _share(*labels: str) -> Callable[[Record], str]:
    return lambda record: f"{sum(record['simulated']['shares'].get(label, 0.0) for label in labels):.2%}"


def _counts(values: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in values.items()) or "none"


def _poll(record: Record) -> str:
    poll = record["measured_here"]["poll_s"]
    return "-" if poll is None else f"{seconds(poll['median'])} (most {seconds(poll['most'])})"


def _restart(record: Record) -> str:
    found = record["measured_here"]["verdict_and_restart_s"]
    return "-" if found is None else seconds(found["median"])


_ROWS: tuple[tuple[str, Callable[[Record], str]], ...] = (
    ("goodput", _simulated("goodput", lambda share: f"{share:.1%}")),
    ("step", _share("step")),
    ("save stall", _share("save stall")),
    ("lost work", _share("lost work")),
    ("detect", _share("detect")),
    ("restart", _share("restart", "queue", "prepare", "start")),
    ("repeated steps", _simulated("repeated_steps", lambda count: f"{count:,}")),
    ("failures", _simulated("failures", _counts)),
    ("restarts from", _simulated("restarts", _counts)),
    ("last result to next, median", _simulated("median_restart_s", seconds)),
    ("between saves, median", _simulated("median_save_gap_s", seconds)),
    ("smallest world", _simulated("smallest_world", lambda ranks: f"{ranks:,}")),
    ("*closed forms:* MTBF", _closed("mtbf_s", seconds)),
    ("checkpoint", _closed("checkpoint_bytes", size)),
    ("of it per rank", _closed("rank_bytes", size)),
    ("manifest", _closed("manifest_bytes", size)),
    ("headers of all rank files", _closed("header_bytes", size)),
    ("fragments", _closed("fragments", lambda count: f"{count:,}")),
    ("commit: driver's work", _closed("commit_fan_in_s", seconds)),
    ("a save is durable after", _closed("save_s", seconds)),
    ("between saves (Daly)", _closed("daly_interval_s", seconds)),
    ("storage, mean", _closed("storage_bytes_per_s", lambda rate: f"{size(rate)}/s")),
    ("storage, while saving", _closed("storage_peak_bytes_per_s", lambda rate: f"{size(rate)}/s")),
    ("sent to a buddy per snapshot", _closed("buddy_bytes_per_snapshot_and_node", size)),
    ("driver looks at the checkpoint", _closed("select_s", seconds)),
    ("process group and engine", _closed("begin_s", seconds)),
    ("load from memory", _closed("restore_s", lambda found: seconds(found["own memory"]))),
    ("load from storage", _closed("restore_s", lambda found: seconds(found["storage"]))),
    ("connections to a node's server", _closed("connections_per_node_server", lambda count: f"{count:,}")),
    ("requests to storage, all ranks", _closed("requests_from_storage", lambda count: f"{count:,}")),
    ("*timed here:* controller, a step of every rank", _poll),
    ("controller, verdict and next attempt", _restart),
)
