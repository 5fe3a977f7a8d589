"""`python -m zerofleet.launch.metrics.reference > docs/metrics.md`: every metric, from the catalog; a test compares."""

from __future__ import annotations

import sys

from zerofleet.k8s.monitoring.alerts import alerts
from zerofleet.k8s.profile import LifecycleConfig, MonitoringConfig
from zerofleet.launch.metrics.catalog import METRICS, PREFIX

BAR = "\\|"
"""In a cell of a table."""

HEAD = """# Metrics

A run's driver answers Prometheus, where it is asked to:

```sh
zerofleet submit launch/recipes/quickstart.yaml run.name=first metrics.port=8090
curl -s http://127.0.0.1:8090/metrics | grep zerofleet_step
```
Without `metrics.port` it does not; with 0 it takes a port that is free. The run's events name the address, and say so when it cannot be listened at: then the
run goes on without. It listens at 127.0.0.1 unless `metrics.address` says otherwise; there is no password and no encryption, so leave it there
or behind a network policy. The environment variable `ZEROFLEET_METRICS=ADDRESS:PORT` is stronger than the job's settings.

**On Kubernetes** the profile says it (`monitoring.port`, 8090; docs/profile.md): the head's container has a port `train-metrics`, and the driver is told by that
variable. A namespace needs once, where the Prometheus operator and Grafana's sidecar are there:
- a **NetworkPolicy** that lets Prometheus (`monitoring.prometheus_namespace`) reach the ports for metrics;
- a **PodMonitor** of all runs' pods: the driver's port, and Ray's own (`metrics`, `as-metrics`, `dash-metrics`). Labels by which the operator takes it up:
  `monitoring.monitor_labels` (`release: prometheus`);
- a **PrometheusRule** with the alerts, each with what it means, the command to begin with, and its place in the runbook (`monitoring.runbook_url`);
- a **ConfigMap** with the dashboard (`monitoring.dashboard_labels`).

`zerofleet k8s bootstrap` writes the first, and the others where the profile says `monitoring.prometheus_operator: true`. Without operators:
```sh
python -m zerofleet.k8s.monitoring rules > zerofleet-rules.yml          # rule_files of prometheus.yml
python -m zerofleet.k8s.monitoring dashboard > zerofleet-dashboard.json  # Grafana: Dashboards, New, Import
```

**What a scrape costs.** Events are taken in by a thread of their own; a scrape reads a few kept values and at most 1,024 steps for the accounts, whatever the run's
length: milliseconds. Nothing of it can end or hold up a run. A driver that takes a run over reads what the run has written down, once, and goes on
counting from there; until then it shows the run's state only.

**How to read them.** `_total` never goes down within a run. `time_seconds` is a gauge, since it does: when a failure makes a run do steps again, their time moves from `step`
to `lost work`. All its labels together are the wall time of the run (docs/goodput.md), the sum `zerofleet explain` shows; it is exact while a run goes back by less than
512 steps, and in proportion beyond. Ages are told by the driver's own clock. A driver that has ended answers no more: that a run has failed is
in its RayJob and in its run folder.

Every series has the label `run`; Prometheus adds where it was scraped. Buckets of histograms double from bound to bound.

| metric | kind | labels | meaning |
|---|---|---|---|
"""

ALERTS = """
## Alerts
`k8s/monitoring/alerts.py`; tested by `promtool` with series under which each fires, and under which it does not. What each means and the command to begin with is in its description.

| alert | severity | for | when |
|---|---|---|---|
"""
TAIL = """
The driver of a run of silos shows rounds as steps and no `time_seconds`; the silos' own drivers show nothing yet.
"""


def render() -> str:
    """The page as Markdown."""
    rows = [
        f"| `{PREFIX}{m.name}` | {m.kind} | {', '.join(f'`{label}`' for label in m.labels)} | {m.meaning} |\n"
        for m in METRICS
    ]
    every = alerts(MonitoringConfig(), LifecycleConfig())
    paged = [f"| `{a.name}` | {a.severity} | {a.for_s} s | `{a.expr.replace('|', BAR)}` |\n" for a in every]
    return "".join([HEAD, *rows, ALERTS, *paged, TAIL])


if __name__ == "__main__":
    sys.stdout.write(render())
