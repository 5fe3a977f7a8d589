"""The alerts as Prometheus itself reads them: its own checker, and series under which each fires, and under which it does not."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from zerofleet.k8s.monitoring.alerts import alerts, rule_groups
from zerofleet.k8s.profile import LifecycleConfig, MonitoringConfig

PROMTOOL = shutil.which("promtool")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(120),
    pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)"),
]
MINUTES = 120
CASE = "CASE"
"""In the place of the run's and the pod's name: all cases are one database, each with a name of its own."""


def series(name: str, values: str, **labels: str) -> dict[str, str]:
    more = "".join(f', {label}="{value}"' for label, value in labels.items())
    return {"series": f'zerofleet_{name}{{run="{CASE}", namespace="training"{more}}}', "values": values}


def state(now: str) -> list[dict[str, str]]:
    return [series("state", f"{int(name == now)}x{MINUTES}", state=name) for name in ("PLACING", "RUNNING", "FINISHED")]


def steps(mean_s: float) -> list[dict[str, str]]:
    done = series("step_duration_seconds_count", f"100x{MINUTES}")
    return [done, series("step_duration_seconds_sum", f"{100 * mean_s}x{MINUTES}")]


def time_by_label(**per_minute: float) -> list[dict[str, str]]:
    return [
        series("time_seconds", f"0+{seconds}x{MINUTES}", label=label.replace("_", " "))
        for label, seconds in per_minute.items()
    ]


def pods(phase: str) -> list[dict[str, str]]:
    pod = f'namespace="training", pod="{CASE}"'
    return [
        {"series": f'kube_pod_status_phase{{{pod}, phase="{phase}"}}', "values": f"1x{MINUTES}"},
        {"series": f'kube_pod_labels{{{pod}, label_app_kubernetes_io_part_of="zerofleet"}}', "values": f"1x{MINUTES}"},
    ]


def up(value: int) -> list[dict[str, str]]:
    return [{"series": f'up{{endpoint="train-metrics", pod="{CASE}"}}', "values": f"{value}x{MINUTES}"}]


CASES = {
    "ZerofleetNoProgress": [
        ([*state("RUNNING"), series("step_age_seconds", f"0+60x{MINUTES}"), *steps(1.0)], True),
        ([*state("FINISHED"), series("step_age_seconds", f"0+60x{MINUTES}"), *steps(1.0)], False),
        ([*state("RUNNING"), series("step_age_seconds", f"500x{MINUTES}"), *steps(1.0)], False),
        ([*state("RUNNING"), series("step_age_seconds", f"0+60x{MINUTES}"), *steps(3600.0)], False),
    ],
    "ZerofleetNothingDurable": [
        ([series("durable_age_seconds", f"0+60x{MINUTES}")], True),
        ([series("durable_age_seconds", f"3500x{MINUTES}")], False),
    ],
    "ZerofleetStorageDown": [
        ([series("storage_down_seconds", f"0+60x{MINUTES}")], True),
        ([series("storage_down_seconds", f"0x{MINUTES}")], False),
    ],
    "ZerofleetCrashLoop": [
        ([series("attempts_total", "1x70 2x5 3x5 4x5 5x40")], True),
        ([series("attempts_total", "1x70 2x5 3x5 4x45")], False),
        ([series("attempts_total", f"{count}x{MINUTES}", pod=f"head-{count}") for count in (1, 3, 5)], True),
        ([series("attempts_total", f"9x{MINUTES}")], False),
    ],
    "ZerofleetNotTraining": [
        ([*state("PLACING"), series("state_age_seconds", f"0+60x{MINUTES}")], True),
        ([*state("RUNNING"), series("state_age_seconds", f"0+60x{MINUTES}")], False),
        ([*state("PLACING"), series("state_age_seconds", f"600x{MINUTES}")], False),
    ],
    "ZerofleetGoodputLow": [
        (time_by_label(step=20, restart=40), True),
        (time_by_label(step=50, restart=10), False),
        (time_by_label(step=50, data_wait=10, prepare=600), False),
    ],
    "ZerofleetStraggler": [
        ([series("stragglers", f"1x{MINUTES}")], True),
        ([series("stragglers", "0x100 1x20")], False),
    ],
    "ZerofleetFewerNodes": [
        ([*state("RUNNING"), series("nodes", f"3x{MINUTES}"), series("nodes_wanted", f"4x{MINUTES}")], True),
        ([*state("RUNNING"), series("nodes", f"4x{MINUTES}"), series("nodes_wanted", f"4x{MINUTES}")], False),
        ([*state("PLACING"), series("nodes", f"0x{MINUTES}"), series("nodes_wanted", f"4x{MINUTES}")], False),
    ],
    "ZerofleetDriverSilent": [(up(0), True), (up(1), False)],
    "ZerofleetPodPending": [(pods("Pending"), True), (pods("Running"), False)],
}


@pytest.fixture
def rule_file(tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text(json.dumps(rule_groups(MonitoringConfig(), LifecycleConfig())))  # JSON is YAML
    return path


def promtool(*arguments: str) -> str:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_rules_are_rules(rule_file):
    count = len(alerts(MonitoringConfig(), LifecycleConfig()))
    assert f"SUCCESS: {count} rules found" in promtool("check", "rules", str(rule_file))


def test_every_alert_has_cases():
    assert CASES.keys() == {alert.name for alert in alerts(MonitoringConfig(), LifecycleConfig())}


def test_each_fires_when_it_should_and_only_then(rule_file, tmp_path):
    """By the series ALERTS, since the annotations have values in them."""
    every, queries = [], []
    for name, cases in CASES.items():
        for number, (input_series, fires) in enumerate(cases):
            case = f"{name}-{number}"
            every += [{**one, "series": one["series"].replace(CASE, case)} for one in input_series]
            wanted = f'alertname="{name}", alertstate="firing"'
            expr = f'count(ALERTS{{{wanted}, run="{case}"}} or ALERTS{{{wanted}, pod="{case}"}})'
            samples = [{"labels": "{}", "value": 1}] if fires else []
            queries.append({"expr": expr, "eval_time": f"{MINUTES - 5}m", "exp_samples": samples})
    test = {"interval": "1m", "input_series": every, "promql_expr_test": queries}
    cases_file = tmp_path / "cases.yaml"
    cases_file.write_text(json.dumps({"rule_files": [str(rule_file)], "evaluation_interval": "1m", "tests": [test]}))
    promtool("test", "rules", str(cases_file))
