"""The report's page: a run's record in, one HTML text out. No network, no script, no libraries. Pure."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zerofleet.cluster.goodput.causes import best_setting
from zerofleet.cluster.goodput.ledger import Ledger
from zerofleet.launch.explanation import Explanation
from zerofleet.launch.report.charts import Line, chart, number, seconds, share
from zerofleet.launch.report.markup import facts, mini_bar, section, table, text
from zerofleet.launch.report.profile_part import profile_section
from zerofleet.launch.report.rank_parts import memory_section, ranks_section
from zerofleet.launch.report.series import downsample
from zerofleet.launch.report.style import STYLE
from zerofleet.launch.report.timeline import kind_of, marked, timeline
from zerofleet.launch.words import duration
from zerofleet.trainer.data.quarantine import named
from zerofleet.trainer.events import Event

MOST_ROWS = 200
"""Of a table, the newest."""
MOST_ATTEMPT_COLUMNS = 12
_STATES = {"FINISHED": "good", "FAILED": "bad", "DEAD": "bad"}
"""CSS classes."""


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
    state, heldout = report.explanation.state, _evaluated(report)[-1:]
    return facts(
        [
            ("state", f'<span class="{_STATES.get(state, "")}">{text(state)}</span>'),
            ("steps", f"{len(steps):,} of {report.total_steps:,}"),
            ("loss", text(number(float(steps[-1].data["loss"]))) if steps and "loss" in steps[-1].data else ""),
            ("held-out loss", text(number(float(heldout[0].data["loss"]))) if heldout else ""),
            ("goodput", f"{ledger.goodput():.1%}"),
            ("wall time", duration(ledger.wall_s)),
            ("tokens/s, median", number(medians["tokens_per_second"]) if "tokens_per_second" in medians else ""),
            ("MFU, median", f"{medians['mfu']:.1%}" if "mfu" in medians else ""),
            ("attempts", str(len(ledger.history.attempts))),
            ("began", began),
        ]
    )


def _evaluated(report: Report) -> list[Event]:
    """By step, the newest of each."""
    newest = {event.step: event for event in report.ledger.history.results if event.kind == "eval"}
    return [event for _, event in sorted(newest.items())]


def _training(report: Report) -> str:
    steps, evals = report.steps, _evaluated(report)
    marks = [record.start_step for record in report.ledger.history.attempts[1:]][-MOST_ROWS:]
    heldout = Line("held out", downsample(_values(evals, "loss"), 200), "c2", has_dots=True)
    times = Line("step", downsample([(e.step, e.duration_s) for e in steps]))
    charts = (
        chart("Loss", [Line("training", downsample(_values(steps, "loss"))), heldout], marks, unit="nats per token"),
        chart("Learning rate", [Line("rate", downsample(_values(steps, "learning_rate")))], marks, from_zero=True),
        chart(
            "Throughput",
            [Line("throughput", downsample(_values(steps, "tokens_per_second")))],
            marks,
            from_zero=True,
            unit="tokens/s",
        ),
        chart(
            "MFU",
            [Line("MFU", downsample(_values(steps, "mfu")))],
            marks,
            from_zero=True,
            unit="PaLM convention",
            shown=share,
        ),
        chart("Step time", [times], marks, from_zero=True, shown=seconds),
        chart("Gradient norm", [Line("norm", downsample(_values(steps, "grad_norm")))], marks, from_zero=True),
    )
    drawn = "".join(charts)
    note = (
        "<p><small>Over steps; the figure at the right is the last one. Bands go from the least to the largest of the steps that share a point; dashed "
        "lines are restarts.</small></p>"
    )
    return section("Training", f"<div class=charts>{drawn}</div>{note}") if drawn else ""


def _values(events: Sequence[Event], key: str) -> list[tuple[float, float]]:
    return [(event.step, float(event.data[key])) for event in events if event.data.get(key) is not None]


def _time(report: Report) -> str:
    ledger, wall_s = report.ledger, max(report.ledger.wall_s, 1e-9)
    shown = list(ledger.attempts)[-MOST_ATTEMPT_COLUMNS:]
    most_s = max(ledger.labels.values(), default=0.0) or 1.0
    rows = [
        [
            f'<span class="key {kind_of(label)}">{text(label)}</span>',
            f"{spent_s:,.1f} s",
            f"{spent_s / wall_s:.1%}",
            mini_bar([(kind_of(label), spent_s / most_s)]),
            *(f"{ledger.attempts[a][label]:,.1f}" for a in shown),
        ]
        for label, spent_s in ledger.labels.items()
        if spent_s > 0
    ]
    head = ["label", "in all", "share", "", *(f"attempt {attempt}" for attempt in shown)]
    kinds = ("t", "n", "n", "mini-cell", *("n" for _ in shown))
    return section("Where the time went", timeline(ledger, report.explanation.happenings), table(head, rows, kinds))


def _why(report: Report) -> str:
    causes, wall_s = report.explanation.causes, max(report.ledger.wall_s, 1e-9)
    items = "".join(
        f"<li><b>{text(c.name)}</b>, {c.cost_s:,.1f} s ({c.cost_s / wall_s:.0%}): {text(c.evidence)}"
        f"{f'<br><span class=unit>{text(c.remedy)}</span>' if c.remedy else ''}</li>"
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
    numbers = {id(happening): number for number, happening in marked(report.explanation.happenings).items()}
    rows = "".join(
        f"<div class=event><time>{time.strftime('%m-%d %H:%M:%S', time.localtime(h.at))}</time><span class=unit>attempt {text(h.attempt)}</span>"
        f"<p>{f'<span class=tag>{numbers[id(h)]}</span>' if id(h) in numbers else ''}{text(h.text)}</p></div>"
        for h in report.explanation.happenings[-MOST_ROWS:]
    )
    return section("What happened", rows)


def _ranks(report: Report) -> str:
    return ranks_section(report.ledger) + memory_section(report.ledger)


def _checkpoints(report: Report) -> str:
    commits = [event for event in report.ledger.history.events if event.kind == "checkpoint"][-MOST_ROWS:]
    rows = [
        [f"{e.step:,}", str(e.attempt), f"{float(e.data.get('bytes', 0)) / 2**20:,.1f}", f"{e.duration_s:,.2f}"]
        for e in reversed(commits)
    ]
    head = ["step", "attempt", "MiB", "seconds to durable"]
    return section("Checkpoints", table(head, rows, ("n",) * len(head)))


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
    pairs = ((key, _plain(value)) for event in events[-1:] for key, value in event.data.items())
    rows = [[text(key.replace("_", " ")), text(value)] for key, value in pairs if value]
    infos = dict.fromkeys(str(e.data.get("message", "")) for e in report.ledger.history.events if e.kind == "info")
    said = "".join(f"<li>{text(message)}</li>" for message in list(infos)[-20:] if message)
    return section("Environment", table(["", ""], rows, ("k", "t")), f"<ul>{said}</ul>" if said else "")


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(_plain, value)) if isinstance(value, (list, tuple)) else str(value)


def _profile(report: Report) -> str:
    return profile_section(report.ledger)


_PARTS = (_head, _why, _training, _time, _chain, _ranks, _profile, _checkpoints, _samples, _job, _environment)
