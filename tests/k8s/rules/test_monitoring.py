"""Ports that Ray has, or that only root can have; monitors that nobody would take up."""

from __future__ import annotations

import pytest

from tests.k8s.support import CPU, changed_profile, pods_of, rendered, workload
from zerofleet.k8s.lint import lint
from zerofleet.k8s.profile import Profile
from zerofleet.k8s.rules.monitoring import monitoring


def found(profile: Profile) -> list[tuple[str, str, str]]:
    return [(f.level, f.where, f.message) for f in monitoring(profile, workload(CPU, profile=profile))]


@pytest.mark.parametrize(
    ("port", "words"), [(8265, "head's port dashboard"), (8080, "head's port metrics"), (80, "root")]
)
def test_a_port_that_the_driver_could_not_listen_at(port, words):
    profile = changed_profile(CPU, monitoring__port=port)
    ((level, where, message),) = found(profile)
    assert (level, where) == ("error", "monitoring.port") and words in message and "8090" in message
    assert message in {finding.message for finding in lint(profile, workload(CPU, profile=profile))}


def test_a_monitor_without_labels_is_worth_a_word():
    ((level, where, _),) = found(changed_profile(CPU, monitoring__monitor_labels={}))
    assert (level, where) == ("warning", "monitoring.monitor_labels")
    assert found(changed_profile(CPU, monitoring__monitor_labels={}, monitoring__port=0)) == []


def head(**changes: object) -> dict:
    profile = changed_profile(CPU, **changes)
    job = rendered(profile, workload(CPU, profile=profile))[-1]
    return pods_of(job)["head"]["spec"]["containers"][0]


def test_the_head_names_all_its_ports_and_the_driver_is_told_of_its_own():
    ports = {port["name"]: port["containerPort"] for port in head(monitoring__port=9999)["ports"]}
    assert ports["train-metrics"] == 9999 and ports["dashboard"] == 8265 and ports["gcs-server"] == 6379
    assert {"name": "ZEROFLEET_METRICS", "value": "0.0.0.0:9999"} in head(monitoring__port=9999)["env"]


def test_a_driver_that_is_not_to_be_scraped_has_no_port():
    container = head(monitoring__port=0)
    assert "train-metrics" not in {port["name"] for port in container["ports"]}
    assert "ZEROFLEET_METRICS" not in {entry["name"] for entry in container["env"]}
