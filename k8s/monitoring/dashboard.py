"""A Grafana dashboard of runs: what they learn, how fast, where the time goes, what fails, what would be lost. The same every time."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import Any

UID = "zerofleet-runs"
_COLUMNS = 24
"""Of Grafana's grid."""
_HEIGHT = 8
_SELECTOR = '{namespace=~"$namespace", run=~"$run"}'


@dataclass(frozen=True)
class Query:
    """`{}` in `expr` becomes the selector of the chosen runs; `legend` is Grafana's format."""

    expr: str
    legend: str

    @property
    def text(self) -> str:
        return self.expr.replace("{}", _SELECTOR)


@dataclass(frozen=True)
class Panel:
    """`width` in columns of the grid, of 24."""

    title: str
    about: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    stacked: bool = False


def _by_run(expr: str, name: str = "") -> Query:
    return Query(expr, f"{{{{run}}}} {name}".strip())


def _mean(metric: str) -> str:
    return f"rate(zerofleet_{metric}_seconds_sum{{}}[$__rate_interval]) / rate(zerofleet_{metric}_seconds_count{{}}[$__rate_interval])"


def _quantile(share: float) -> str:
    buckets = "rate(zerofleet_step_duration_seconds_bucket{}[$__rate_interval])"
    return f"histogram_quantile({share}, sum by (run, le) ({buckets}))"


PANELS: tuple[Panel, ...] = (
    Panel("State", "What each run is doing.", (Query("max by (run, state) (zerofleet_state{}) == 1", "{{run}} {{state}}"),), "none", "state-timeline", 12),
    Panel("Step", "Newest step of those planned.", (_by_run("zerofleet_step{}"), _by_run("zerofleet_planned_steps{}", "planned")), width=4),
    Panel("Attempts", "Lives of the ranks so far.", (_by_run("zerofleet_attempts_total{}"),), kind="stat", width=4),
    Panel("Goodput", "Counted steps x median step / wall time, of the whole run.", (_by_run("zerofleet_goodput_ratio{}"),), "percentunit", "stat", 4),
    Panel("Loss", "Training and held out.", (_by_run("zerofleet_loss{}", "training"), _by_run("zerofleet_heldout_loss{}", "held out"))),
    Panel("Throughput", "Tokens per second, repeated steps included.", (_by_run("rate(zerofleet_tokens_total{}[$__rate_interval])"),), "short"),
    Panel("MFU", "Model FLOP/s over the hardware's peak.", (_by_run("zerofleet_mfu_ratio{}"),), "percentunit"),
    Panel("Step time", "Median and 99th percentile.", (_by_run(_quantile(0.5), "median"), _by_run(_quantile(0.99), "p99")), "s"),
    Panel("Gradient norm", "Before clipping.", (_by_run("zerofleet_grad_norm{}"),)),
    Panel("Learning rate", "Of the newest step.", (_by_run("zerofleet_learning_rate{}"),), "sci"),
    Panel("Where the time goes", "Seconds per second by label: all of them are 1 per run. Steps that turn out to be lost move from step to lost work.", (Query("clamp_min(sum by (label) (deriv(zerofleet_time_seconds{}[5m])), 0)", "{{label}}"),), "percentunit", width=16, stacked=True),
    Panel("Time so far", "The whole bill, by label.", (Query("sum by (label) (zerofleet_time_seconds{})", "{{label}}"),), "s", "bargauge"),
    Panel("Failures", "Attempts that failed, by what did it.", (Query("sum by (run, class, action) (increase(zerofleet_verdicts_total{}[5m])) > 0", "{{run}} {{class}}: {{action}}"),), kind="barchart"),
    Panel("Incidents", "By kind.", (Query("sum by (run, class) (increase(zerofleet_incidents_total{}[5m])) > 0", "{{run}} {{class}}"),), kind="barchart"),
    Panel("Stragglers and quarantine", "Slow ranks now; sample positions that are left out.", (_by_run("zerofleet_stragglers{}", "stragglers"), _by_run("zerofleet_quarantined_positions{}", "positions left out"))),
    Panel("Nodes and ranks", "There, and asked for.", (_by_run("zerofleet_nodes{}", "nodes"), _by_run("zerofleet_nodes_wanted{}", "nodes asked for"), _by_run("zerofleet_ranks{}", "ranks"), _by_run("zerofleet_ranks_wanted{}", "ranks asked for"))),
    Panel("Steps that would be lost", "If everything but this tier's copies were lost now.", (Query("zerofleet_step{} - ignoring (tier) group_right () zerofleet_newest_step{}", "{{run}} {{tier}}"),)),
    Panel("Age of what is durable", "Since the newest commit; since storage is down.", (_by_run("zerofleet_durable_age_seconds{}", "newest commit"), _by_run("zerofleet_storage_down_seconds{}", "storage down")), "s"),
    Panel("Snapshots and checkpoints", "Mean seconds: to memory, and until durable.", (_by_run(_mean("snapshot_duration"), "snapshot"), _by_run(_mean("checkpoint_duration"), "checkpoint")), "s"),
    Panel("Bytes", "Of the newest snapshot and checkpoint, all ranks together.", (_by_run("zerofleet_snapshot_bytes{}", "snapshot"), _by_run("zerofleet_checkpoint_bytes{}", "checkpoint")), "bytes"),
    Panel("Since the last sign", "Since a step was finished; since the state was entered.", (_by_run("zerofleet_step_age_seconds{}", "step"), _by_run("zerofleet_state_age_seconds{}", "state")), "s"),
)  # fmt: skip


def dashboard() -> dict[str, Any]:
    """As Grafana imports it."""
    return {
        "uid": UID,
        "title": "zerofleet runs",
        "tags": ["zerofleet", "training"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": [_datasource(), _variable("namespace"), _variable("run")]},
        "panels": [
            _panel(number, panel, place)
            for number, (panel, place) in enumerate(zip(PANELS, _places(), strict=True), start=1)
        ],
    }


def dashboard_json() -> str:
    return json.dumps(dashboard(), indent=1, sort_keys=True) + "\n"


def _places() -> list[dict[str, int]]:
    """Row by row, from left to right."""
    places, x, y = [], 0, 0
    for panel in PANELS:
        if x + panel.width > _COLUMNS:
            x, y = 0, y + _HEIGHT
        places.append({"x": x, "y": y, "w": panel.width, "h": _HEIGHT})
        x += panel.width
    return places


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    custom: dict[str, Any] = {"showPoints": "never"} if panel.kind == "timeseries" else {}
    if panel.stacked:
        custom |= {"stacking": {"mode": "normal"}, "fillOpacity": 60, "lineWidth": 0}
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": source,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "custom": custom}, "overrides": []},
        "targets": [
            {"refId": letter, "datasource": source, "expr": query.text, "legendFormat": query.legend}
            for letter, query in zip(map(chr, itertools.count(ord("A"))), panel.queries, strict=False)
        ],
    }


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _variable(label: str) -> dict[str, Any]:
    """Chosen from the runs that are there; outside of Kubernetes there is no namespace, so that All takes anything."""
    of = '{namespace=~"$namespace"}' if label == "run" else ""
    return {
        "name": label,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": f"label_values(zerofleet_run_info{of}, {label})", "refId": label},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }
