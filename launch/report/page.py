"""The report's page: a run's record in, one HTML text out. No network, no script, no libraries. Pure."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zerofleet.cluster.goodput.causes import best_setting
from zerofleet.cluster.goodput.ledger import Ledger
from zerofleet.cluster.policy.stragglers import outliers
from zerofleet.launch.explanation import Explanation
from zerofleet.launch.report.charts import Line, chart, number
from zerofleet.launch.report.markup import facts, section, table, text
from zerofleet.launch.report.series import downsample
from zerofleet.launch.report.style import STYLE
from zerofleet.launch.report.timeline import timeline
from zerofleet.launch.words import duration
from zerofleet.trainer.data.quarantine import named
from zerofleet.trainer.events import Event

MOST_ROWS = 200
"""Of a table: the newest, or the slowest ranks."""
MOST_ATTEMPT_COLUMNS = 12


@dataclass(frozen=True)
class Report:
    """What a page is made of. `total_steps` of the job, `job_yaml` the resolved job with all overrides."""

    explanation: Explanation
    total_steps: int
    global_batch_size: int
    job_yaml: str

    @property
    def ledger(self) -> Ledger:
        return self.explanation.ledger

    @property
    def steps(self) -> list[Event]:
        """Per step the one that counts, in order."""
        return [event for _, event in sorted(self.ledger.history.counted.items())]


def page(report: Report) -> str:
    """The whole file."""
    name = text(report.explanation.run)
    body = "".join(part(report) for part in _PARTS)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{name}</title><style>{STYLE}</style></head>\n<body><h1>{name}</h1>\n{body}</body></html>\n"
    )


def _head(report: Report) -> str:
    ledger, steps = report.ledger, report.steps
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(ledger.history.began_at)) if ledger.history.began_at else ""
    known: dict[str, list[float]] = {
        key: [float(e.data[key]) for e in steps if e.data.get(key)] for key in ("tokens_per_second", "mfu")
    }
    medians = {key: statistics.median(values) for key, values in known.items() if values}
    return facts(
        [
            ("state", text(report.explanation.state)),
            ("steps", f"{len(steps):,} of {report.total_steps:,}"),
            ("loss", text(number(float(steps[-1].data["loss"]))) if steps and "loss" in steps[-1].data else ""),
            ("goodput", f"{ledger.goodput():.1%}"),
            ("wall time", duration(ledger.wall_s)),
            ("tokens/s, median", number(medians["tokens_per_second"]) if "tokens_per_second" in medians else ""),
            ("MFU, median", f"{medians['mfu']:.1%}" if "mfu" in medians else ""),
            ("attempts", str(len(ledger.history.attempts))),
            ("began", began),
        ]
    )


def _training(report: Report) -> str:
    steps, evaluated = report.steps, {e.step: e for e in report.ledger.history.results if e.kind == "eval"}
    evals = [event for _, event in sorted(evaluated.items())]
    marks = [record.start_step for record in report.ledger.history.attempts[1:]][-MOST_ROWS:]
    heldout = Line("held out", downsample(_values(evals, "loss"), 200), "c2", has_dots=True)
    charts = (
        chart("Loss", [Line("training", downsample(_values(steps, "loss"))), heldout], marks),
        chart("Learning rate", [Line("rate", downsample(_values(steps, "learning_rate")))], marks, from_zero=True),
        chart("Throughput", [Line("tokens/s", downsample(_values(steps, "tokens_per_second")))], marks, from_zero=True),
        chart("MFU", [Line("PaLM convention", downsample(_values(steps, "mfu")))], marks, from_zero=True),
        chart(
            "Step time", [Line("seconds", downsample([(e.step, e.duration_s) for e in steps]))], marks, from_zero=True
        ),
        chart("Gradient norm", [Line("norm", downsample(_values(steps, "grad_norm")))], marks, from_zero=True),
    )
    drawn = "".join(charts)
    note = "<p><small>Bands go from the least to the largest of the steps that share a point; dashed lines are restarts.</small></p>"
    return section("Training", f"<div class=charts>{drawn}</div>{note}") if drawn else ""


def _values(events: Sequence[Event], key: str) -> list[tuple[float, float]]:
    return [(event.step, float(event.data[key])) for event in events if event.data.get(key) is not None]


def _time(report: Report) -> str:
    ledger, wall_s = report.ledger, max(report.ledger.wall_s, 1e-9)
    shown = list(ledger.attempts)[-MOST_ATTEMPT_COLUMNS:]
    rows = [
        [
            text(label),
            f"{seconds:,.1f} s",
            f"{seconds / wall_s:.1%}",
            *(f"{ledger.attempts[a][label]:,.1f}" for a in shown),
        ]
        for label, seconds in ledger.labels.items()
        if seconds > 0
    ]
    head = ["label", "in all", "share", *(f"attempt {attempt}" for attempt in shown)]
    return section("Where the time went", timeline(ledger, report.explanation.happenings), table(head, rows))


def _why(report: Report) -> str:
    causes, wall_s = report.explanation.causes, max(report.ledger.wall_s, 1e-9)
    items = "".join(
        f"<li><b>{text(c.name)}</b>, {c.cost_s:,.1f} s ({c.cost_s / wall_s:.0%}): {text(c.evidence)}"
        f"{f'<br>{text(c.remedy)}' if c.remedy else ''}</li>"
        for c in causes
    )
    best = best_setting(list(causes))
    advice = (
        f"<p class=best><b>{text(best.setting)}</b> would have saved most: about {best.saving_s:,.1f} s ({best.saving_s / wall_s:.0%})</p>"
        if best
        else ""
    )
    return section("Why", f"<ol>{items}</ol>" if items else "<p>Nothing stands out.</p>", advice)


def _chain(report: Report) -> str:
    rows = [
        [time.strftime("%m-%d %H:%M:%S", time.localtime(h.at)), text(h.attempt), text(h.text)]
        for h in report.explanation.happenings[-MOST_ROWS:]
    ]
    return section("What happened", table(["when", "attempt", "what"], rows, numbers_from=3))


def _ranks(report: Report) -> str:
    rows: list[tuple[float, list[str]]] = []
    for record in report.ledger.history.attempts:
        times = {
            rank: t for (attempt, rank), t in report.ledger.rank_times.items() if attempt == record.attempt and t.steps
        }
        slow = {straggler.rank for straggler in outliers({rank: t.own_s / t.steps for rank, t in times.items()})}
        for rank, t in times.items():
            own = f"{1e3 * t.own_s / t.steps:,.1f}"
            cells = [f"{1e3 * seconds / t.steps:,.1f}" for seconds in (t.data_s, t.stall_s)]
            mark = f"<span class=bad>{own} slow</span>" if rank in slow else own
            rows.append((t.own_s / t.steps, [str(record.attempt), str(rank), f"{t.steps:,}", mark, *cells]))
    slowest = sorted(rows, key=lambda row: -row[0])[:MOST_ROWS]
    head = ["attempt", "rank", "steps", "own work, ms per step", "data wait, ms", "save stall, ms"]
    return section("Ranks, the slowest first", table(head, [cells for _, cells in slowest], numbers_from=0))


def _checkpoints(report: Report) -> str:
    commits = [event for event in report.ledger.history.events if event.kind == "checkpoint"][-MOST_ROWS:]
    rows = [
        [f"{e.step:,}", str(e.attempt), f"{float(e.data.get('bytes', 0)) / 2**20:,.1f}", f"{e.duration_s:,.2f}"]
        for e in reversed(commits)
    ]
    return section("Checkpoints", table(["step", "attempt", "MiB", "seconds to durable"], rows, numbers_from=0))


def _samples(report: Report) -> str:
    history, steps = report.ledger.history, report.steps
    if not steps:
        return ""
    left_out = history.attempts[-1].quarantine if history.attempts else []
    twice = sum(int(event.data.get("tokens", 0)) for event in history.lost)
    return section(
        "Samples",
        facts(
            [
                ("sequences in steps that count", f"{len(steps) * report.global_batch_size:,}"),
                ("tokens in them", f"{sum(int(event.data.get('tokens', 0)) for event in steps):,}"),
                ("tokens in steps that were lost", f"{twice:,}" if twice else ""),
                ("quarantine", text(named(left_out)) if left_out else ""),
            ]
        ),
    )


def _job(report: Report) -> str:
    return section(
        "Configuration",
        f"<details><summary>job.yaml with all overrides</summary><pre>{text(report.job_yaml)}</pre></details>",
    )


def _environment(report: Report) -> str:
    events = [event for event in report.ledger.history.events if event.kind == "environment"]
    rows = [[text(key), text(_plain(value))] for event in events[-1:] for key, value in event.data.items()]
    infos = dict.fromkeys(str(e.data.get("message", "")) for e in report.ledger.history.events if e.kind == "info")
    rows += [["said", text(message)] for message in list(infos)[-20:] if message]
    return section("Environment", table(["", ""], rows, numbers_from=2))


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, (list, tuple)) else str(value)


_PARTS = (_head, _why, _training, _time, _chain, _ranks, _checkpoints, _samples, _job, _environment)
