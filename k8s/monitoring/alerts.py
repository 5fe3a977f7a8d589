"""When somebody is paged, as Prometheus rules. The same input gives the same rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from zerofleet.k8s.names import TRAIN_METRICS
from zerofleet.k8s.profile import LifecycleConfig, MonitoringConfig

_RUNNING = 'and ignoring (state) zerofleet_state{state="RUNNING"} == 1'
_WAITING = "PENDING|PLACING|STARTING|RECOVERING|RESIZING|DRAINING"
_STATUS = "zerofleet status {{ $labels.run }} --backend kuberay"
_LOGS = "zerofleet logs {{ $labels.run }} --backend kuberay"
_NOT_STARTING, _FAILING = "the-run-does-not-start", "the-run-failed-or-begins-again-and-again"
_NO_ANSWER_S = 600
"""How long a driver may be unreachable while its pod is there and has something to do."""


@dataclass(frozen=True)
class Alert:
    """`for_s`: how long `expr` has to hold, in seconds. `first` is the command to begin with."""

    name: str
    severity: Literal["critical", "warning"]
    for_s: int
    expr: str
    summary: str
    description: str
    first: str
    section: str = "when-you-are-paged"
    """Of the runbook."""


def alerts(monitoring: MonitoringConfig, lifecycle: LifecycleConfig) -> tuple[Alert, ...]:
    """All of them, the most urgent first."""
    return (*_critical(monitoring), *_warnings(lifecycle))


def _critical(monitoring: MonitoringConfig) -> Iterator[Alert]:
    mean_s = "zerofleet_step_duration_seconds_sum / zerofleet_step_duration_seconds_count"
    yield Alert(
        "ZerofleetNoProgress",
        "critical",
        120,
        f"zerofleet_step_age_seconds > 600 {_RUNNING} unless zerofleet_step_age_seconds < 20 * {mean_s}",
        "{{ $labels.run }} has finished no step for {{ $value | humanizeDuration }}",
        "It is RUNNING, its ranks are not ended as hung yet (cluster.stall_timeout_s, or what was learned of the run), and 20 mean steps "
        "have gone by: a collective that waits, storage that does not answer, or a rank that was stopped.",
        "zerofleet stacks {{ $labels.run }}, on a machine that reads the run folder",
    )
    yield Alert(
        "ZerofleetNothingDurable",
        "critical",
        300,
        f"zerofleet_durable_age_seconds > {monitoring.durable_age_s}",
        "nothing of {{ $labels.run }} has become durable for {{ $value | humanizeDuration }}",
        "Losing the head now costs everything since then. Either storage does not take the checkpoints, or checkpoint.interval_steps is "
        "too long for this platform.",
        _STATUS,
    )
    yield Alert(
        "ZerofleetStorageDown",
        "critical",
        0,
        "zerofleet_storage_down_seconds > 120",
        "storage has refused what {{ $labels.run }} writes for {{ $value | humanizeDuration }}",
        "Training goes on and keeps its state in the nodes' memory; no attempt can start and nothing becomes durable until storage is back. "
        "Look at its room, its rights and its network.",
        _LOGS,
    )
    attempts = "zerofleet_attempts_total[1h]"
    yield Alert(
        "ZerofleetCrashLoop",
        "critical",
        0,
        f"max by (namespace, run) (max_over_time({attempts})) - min by (namespace, run) (min_over_time({attempts})) >= 4",
        "{{ $labels.run }} has begun {{ $value }} attempts within an hour",
        "Each failure has a verdict that says whose fault it was: the job's, a node's, storage's. The run stops by itself after "
        "cluster.max_failures failures without progress.",
        _STATUS,
        _FAILING,
    )


def _warnings(lifecycle: LifecycleConfig) -> Iterator[Alert]:
    yield Alert(
        "ZerofleetNotTraining",
        "warning",
        0,
        f'sum without (state) (zerofleet_state{{state=~"{_WAITING}"}}) == 1 and zerofleet_state_age_seconds > 1200',
        "{{ $labels.run }} has been on its way to train for 20 minutes",
        "The driver waits: for nodes (PLACING), for the first step (STARTING), for an end (DRAINING). Its pods are paid for meanwhile.",
        _STATUS,
        _NOT_STARTING,
    )
    of_run = 'zerofleet_time_seconds{label!~"prepare|queue|end"}'
    yield Alert(
        "ZerofleetGoodputLow",
        "warning",
        1800,
        'sum without (label) (delta(zerofleet_time_seconds{label="step"}[30m])) / '
        f"sum without (label) (delta({of_run}[30m])) < 0.6",
        "{{ $labels.run }} spends only {{ $value | humanizePercentage }} of its time on steps that count",
        "The dashboard shows by label where the rest goes: repeated steps and restarts after failures, waiting for data, standing still for "
        "saves.",
        "zerofleet explain {{ $labels.run }}, on a machine that reads the run folder",
    )
    yield Alert(
        "ZerofleetStraggler",
        "warning",
        900,
        "zerofleet_stragglers > 0",
        "{{ $value }} ranks of {{ $labels.run }} are slower than the others",
        "All ranks wait for the slowest in every step. The run's incidents name rank and node: look at that node's clocks, temperature, memory "
        "and neighbours.",
        _STATUS,
    )
    yield Alert(
        "ZerofleetFewerNodes",
        "warning",
        1800,
        f"zerofleet_nodes < zerofleet_nodes_wanted {_RUNNING}",
        "{{ $labels.run }} trains on {{ $value }} nodes, fewer than it asks for",
        "It goes on with the same global batch, more slowly, and grows when nodes are there again: look at why the cluster has none to give.",
        _STATUS,
    )
    yield Alert(
        "ZerofleetDriverSilent",
        "warning",
        lifecycle.ttl_s + _NO_ANSWER_S,
        f'up{{endpoint="{TRAIN_METRICS}"}} == 0',
        "the driver in pod {{ $labels.pod }} does not answer",
        "Either no driver runs in this head (the job was not submitted to Ray, or the driver has ended and the pod was not deleted), or it cannot "
        "be reached, or its port is taken, which the run's incidents say.",
        "kubectl -n {{ $labels.namespace }} logs {{ $labels.pod }}",
    )
    pending = 'kube_pod_status_phase{phase="Pending"} == 1'
    named = 'kube_pod_labels{label_app_kubernetes_io_part_of="zerofleet"}'
    yield Alert(
        "ZerofleetPodPending",
        "warning",
        1800,
        f"{pending} and on (namespace, pod) {named}",
        "pod {{ $labels.pod }} has been pending for half an hour",
        "No quota, no node, no image or no volume. Known only where kube-state-metrics tells the pods' label app.kubernetes.io/part-of "
        "(--metric-labels-allowlist).",
        "kubectl -n {{ $labels.namespace }} describe pod {{ $labels.pod }}",
        _NOT_STARTING,
    )


def rule_groups(monitoring: MonitoringConfig, lifecycle: LifecycleConfig) -> dict[str, Any]:
    """`groups`, as a rule file and as the spec of a PrometheusRule have them."""
    rules = [_rule(alert, monitoring.runbook_url) for alert in alerts(monitoring, lifecycle)]
    return {"groups": [{"name": "zerofleet", "rules": rules}]}


def _rule(alert: Alert, runbook_url: str) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expr,
        "for": f"{alert.for_s}s",
        "labels": {"severity": alert.severity},
        "annotations": {
            "summary": alert.summary,
            "description": f"{alert.description} Begin with: {alert.first}",
            "runbook_url": f"{runbook_url}#{alert.section}",
        },
    }
