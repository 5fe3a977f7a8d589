"""Alerts, dashboard and the objects that carry them; every metric that they name is one that a driver shows."""

from __future__ import annotations

import itertools
import json
import re

import pytest
import yaml

from tests.k8s.support import CPU, PROFILES, changed_profile, pods_of, rendered, workload
from zerofleet.k8s.monitoring.__main__ import main
from zerofleet.k8s.monitoring.alerts import alerts
from zerofleet.k8s.monitoring.dashboard import PANELS, dashboard, dashboard_json
from zerofleet.k8s.monitoring.documents import DASHBOARD_FILE, monitoring_documents, network_policy, pod_monitor
from zerofleet.k8s.profile import LifecycleConfig, MonitoringConfig
from zerofleet.k8s.to_yaml import to_yaml
from zerofleet.launch.metrics.catalog import BY_NAME, PREFIX, series_names
from zerofleet.launch.workload import load_profile

ALERTS = alerts(MonitoringConfig(), LifecycleConfig())
QUERIES = [query.text for panel in PANELS for query in panel.queries]
OF_OTHERS = {"up", "kube_pod_status_phase", "kube_pod_labels"}
"""Prometheus's own, and kube-state-metrics'."""
LABELS = {"run", "namespace", "pod", "endpoint", "le", "phase"} | {"label_app_kubernetes_io_part_of"}
"""Those that every series has, or others'."""


def names_in(expr: str) -> set[str]:
    """The metrics of a query: what stands before a selector, a range or an operator and is no function."""
    plain = re.sub(r'"[^"]*"', '""', expr)
    return set(re.findall(r"\b((?:zerofleet|kube)_\w+|up)\b(?!\s*\()", re.sub(r"\{[^}]*\}", "{}", plain)))


def labels_in(expr: str) -> set[str]:
    """What selectors and groupings name."""
    inside = [
        match for pair in re.findall(r"\{([^}]*)\}|(?:by|without|on|ignoring) \(([^)]*)\)", expr) for match in pair
    ]
    return {
        name for text in inside for name in re.findall(r"([a-z_]+)\s*(?==|!|,|$|\))", re.sub(r'"[^"]*"', '""', text))
    }


@pytest.mark.parametrize("expr", [*(alert.expr for alert in ALERTS), *QUERIES])
def test_every_metric_and_label_that_is_asked_for_is_there(expr):
    named = names_in(expr)
    assert named and named - OF_OTHERS <= series_names()
    own = {label for name in named for label in _labels_of(name)}
    assert labels_in(expr) <= LABELS | own


def _labels_of(series: str) -> tuple[str, ...]:
    name = re.sub("_(bucket|sum|count)$", "", series.removeprefix(PREFIX))
    metric = BY_NAME.get(name) or BY_NAME.get(series.removeprefix(PREFIX))
    return metric.labels if metric else ()


def test_the_names_of_a_query_are_found():
    expr = (
        'sum by (run) (rate(zerofleet_a_total{zone="up"}[5m])) / zerofleet_b == on (pod) up and zerofleet_c{x="1"} > 0'
    )
    assert names_in(expr) == {"zerofleet_a_total", "zerofleet_b", "zerofleet_c", "up"}
    assert labels_in(expr) == {"run", "zone", "pod", "x"}


def test_every_metric_is_on_the_dashboard_or_only_explains():
    shown = set().union(*map(names_in, QUERIES))
    silent = {name for name, metric in BY_NAME.items() if not any(_is_of(series, name) for series in shown)}
    assert silent == {"run_info", "steps_total", "tokens_per_second"}, (
        "tokens_per_second and steps_total as rates of counters"
    )


def _is_of(series: str, name: str) -> bool:
    return series.removeprefix(PREFIX) in {name, *(f"{name}_{part}" for part in ("bucket", "sum", "count"))}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_says_what_it_means_and_what_to_do_first(alert):
    assert re.fullmatch(r"Zerofleet[A-Z]\w+", alert.name) and alert.for_s >= 0
    assert alert.first.split()[0] in ("zerofleet", "kubectl")
    assert len(alert.description) > 60 and "{{ $" in alert.summary


def test_the_wait_for_a_silent_driver_is_longer_than_its_pod_stays():
    (silent,) = [
        a for a in alerts(MonitoringConfig(), LifecycleConfig(ttl_s=7200)) if a.name == "ZerofleetDriverSilent"
    ]
    assert silent.for_s > 7200


def test_the_age_and_the_runbook_are_the_profiles():
    profile = changed_profile(
        CPU, monitoring__durable_age_s=77, monitoring__runbook_url="https://wiki.example.com/runs"
    )
    rule = next(d for d in monitoring_documents(profile) if d["kind"] == "PrometheusRule")
    rules = {rule["alert"]: rule for rule in rule["spec"]["groups"][0]["rules"]}
    assert rules["ZerofleetNothingDurable"]["expr"] == "zerofleet_durable_age_seconds > 77"
    where = rules["ZerofleetNothingDurable"]["annotations"]["runbook_url"]
    assert where == "https://wiki.example.com/runs#when-you-are-paged"


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_the_documents_are_the_same_every_time_and_carry_the_labels_that_operators_look_for(path):
    profile = load_profile(path)
    policy, monitor, rule, board = found = monitoring_documents(profile)
    kinds = ["NetworkPolicy", "PodMonitor", "PrometheusRule", "ConfigMap"]
    assert [document["kind"] for document in found] == kinds
    assert {document["metadata"]["namespace"] for document in found} == {profile.namespace}
    assert "release" not in policy["metadata"]["labels"]
    assert monitor["metadata"]["labels"]["release"] == rule["metadata"]["labels"]["release"] == "prometheus"
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(board["data"][DASHBOARD_FILE]) == dashboard()
    assert to_yaml(monitoring_documents(profile)) == to_yaml(monitoring_documents(profile))


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_what_prometheus_may_reach_is_what_it_scrapes(path):
    profile = load_profile(path)
    job = rendered(profile, workload(path))[-1]
    numbers = {port["name"]: port["containerPort"] for port in pods_of(job)["head"]["spec"]["containers"][0]["ports"]}
    scraped = {numbers[end["port"]] for end in pod_monitor(profile)["spec"]["podMetricsEndpoints"]}
    (rule,) = network_policy(profile)["spec"]["ingress"]
    assert {port["port"] for port in rule["ports"]} == scraped
    selector = network_policy(profile)["spec"]["podSelector"]["matchLabels"]
    assert selector == pod_monitor(profile)["spec"]["selector"]["matchLabels"]
    for pod in pods_of(job).values():
        assert selector.items() <= pod["metadata"]["labels"].items()


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_kubernetes_accepts_the_core_objects(path):
    """The Prometheus operator's own are of CRDs that are not here."""
    validate = pytest.importorskip("kubernetes_validate")
    for document in monitoring_documents(load_profile(path)):
        if not document["apiVersion"].startswith("monitoring."):
            validate.validate(document, "1.31", strict=True)


def test_labels_are_the_profiles():
    profile = changed_profile(
        CPU, monitoring__monitor_labels={"team": "ml"}, monitoring__dashboard_labels={"board": "yes"}
    )
    _, monitor, _, board = monitoring_documents(profile)
    assert "release" not in monitor["metadata"]["labels"] and monitor["metadata"]["labels"]["team"] == "ml"
    assert board["metadata"]["labels"]["board"] == "yes"


def test_the_monitor_scrapes_the_drivers_port_where_there_is_one():
    named = [end["port"] for end in pod_monitor(load_profile(CPU))["spec"]["podMetricsEndpoints"]]
    assert named == ["train-metrics", "metrics", "as-metrics", "dash-metrics"]
    off = pod_monitor(changed_profile(CPU, monitoring__port=0))
    assert [end["port"] for end in off["spec"]["podMetricsEndpoints"]] == ["metrics", "as-metrics", "dash-metrics"]


def test_panels_have_numbers_of_their_own_and_do_not_overlap():
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24


def test_every_query_is_of_the_chosen_runs():
    for target in (target for panel in dashboard()["panels"] for target in panel["targets"]):
        of_ours = re.findall(r"zerofleet_\w+(\{[^}]*\})?", target["expr"])
        assert set(of_ours) == {'{namespace=~"$namespace", run=~"$run"}'}, target["expr"]
    letters = [[target["refId"] for target in panel["targets"]] for panel in dashboard()["panels"]]
    assert all(found == list(itertools.islice("ABCDEF", len(found))) for found in letters)


@pytest.mark.parametrize("what", ["rules", "dashboard"])
def test_a_prometheus_and_a_grafana_without_operators_get_files(what, capsys):
    main([what])
    text = capsys.readouterr().out
    if what == "dashboard":
        assert text == dashboard_json()
    else:
        assert {rule["alert"] for rule in yaml.safe_load(text)["groups"][0]["rules"]} == {a.name for a in ALERTS}
