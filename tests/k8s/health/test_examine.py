"""The order of the checks, and what becomes of them where one may not look or nothing answers."""

from __future__ import annotations

import copy

import pytest

from tests.k8s.health.support import FORBIDDEN, FakeApi, lines
from tests.k8s.support import CPU, H100, changed_profile, rendered, workload
from zerofleet.k8s.api import ApiError
from zerofleet.k8s.health.examine import examine
from zerofleet.k8s.health.server import dropped, job, kinds, rights
from zerofleet.k8s.paths import DEPLOYMENT, NODE, RAY_JOB
from zerofleet.launch.workload import load_profile

SERVED = {
    "/version": {"gitVersion": "v1.31.2"},
    "/apis/ray.io/v1": {"resources": [{"name": "rayjobs"}, {"name": "rayjobs/status"}, {"name": "rayclusters"}]},
    "/apis/policy/v1": {"resources": [{"name": "poddisruptionbudgets"}]},
}
THERE = {"/api/v1/namespaces/training": {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}}
POST = f"POST {RAY_JOB.path('training')}"


@pytest.fixture(scope="module")
def tried():
    return rendered(load_profile(CPU), workload(CPU))[-1]


def test_a_server_that_does_not_answer_is_the_only_thing_said():
    said = lines(examine(FakeApi({"/version": ApiError(0, "NoAnswer", "no answer from x")}), load_profile(CPU), None))
    assert said == [
        "fail cluster: no answer from x. See whether you are in its network and logged in (kubectl version)"
    ]


def test_without_a_profile_what_every_run_needs_is_looked_at():
    said = lines(examine(FakeApi(SERVED), None, None))
    assert said[0] == "ok cluster: https://cluster:6443 answers: Kubernetes v1.31.2"
    assert said[1].startswith("ok kinds") and said[2].startswith("warn profile") and len(said) == 3


def test_what_lies_in_a_namespace_that_is_not_there_is_not_asked_for(tried):
    api = FakeApi(SERVED)
    names = [line.partition(":")[0] for line in lines(examine(api, load_profile(CPU), tried))]
    assert names == ["ok cluster", "ok kinds", "fail namespace", "warn operator", "warn nodes"]
    assert api.created == []


def test_what_may_not_be_seen_is_said_and_the_rest_goes_on(tried):
    api = FakeApi(
        {**SERVED, **THERE, POST: None, NODE.cluster_path(): FORBIDDEN, DEPLOYMENT.cluster_path(): {"items": []}}
    )
    said = lines(examine(api, load_profile(CPU), tried))
    assert any(line.startswith('warn nodes: you may not look (User "alice" cannot get it)') for line in said)
    for start in ("ok rights", "fail account", "fail storage", "ok job", "fail operator"):
        assert [line for line in said if line.startswith(start)], (start, said)


def test_the_recipe_is_held_against_the_nodes(tried):
    api = FakeApi({**SERVED, NODE.cluster_path(): {"items": []}})
    api.objects[NODE.cluster_path()]["items"] = [
        {
            "metadata": {"name": "a"},
            "status": {
                "allocatable": {"cpu": "64", "memory": "256Gi", "ephemeral-storage": "1Ti"},
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }
    ]
    asked = workload(CPU, "cluster.nodes=2", "train.global_batch_size=64").cluster
    said = lines(examine(api, load_profile(CPU), tried, asked))
    assert [line for line in said if line.startswith("fail workers: 1 nodes can hold a pod and the recipe takes 2")]


def test_kinds_that_are_not_served_are_named_with_what_brings_them():
    said = lines(kinds(FakeApi({"/apis/ray.io/v1": {"resources": [{"name": "rayclusters"}]}}), load_profile(H100)))
    assert said == [
        "fail kinds: the cluster does not serve rayjobs (ray.io/v1): install KubeRay 1.7.0",
        "fail kinds: the cluster does not serve poddisruptionbudgets (policy/v1): Kubernetes 1.21 is the first with it; upgrade, or set "
        "limits.disruption_budget: false",
        "fail kinds: the cluster does not serve workloads (kueue.x-k8s.io/v1beta2), localqueues (kueue.x-k8s.io/v1beta2): install Kueue 0.19, "
        "or set queue.kind",
    ]


def test_prometheus_kinds_are_asked_for_where_its_operator_is_said_to_be():
    profile = changed_profile(CPU, monitoring__prometheus_operator=True)
    (said,) = lines(kinds(FakeApi(SERVED), profile))
    assert said.startswith("fail kinds: the cluster does not serve podmonitors (monitoring.coreos.com/v1)")


def test_rights_that_lack_are_said_as_a_roles_rules():
    (said,) = lines(rights(FakeApi({"refused": ("create rayjobs",)}), load_profile(CPU)))
    assert said.startswith("fail rights") and '{apiGroups: ["ray.io"], resources: [rayjobs], verbs: [create]}' in said


def test_a_job_is_tried_and_not_created(tried):
    api = FakeApi({POST: None})
    assert lines(job(api, load_profile(CPU), tried)) == ["ok job: a run's RayJob would be taken as it is (a dry run)"]
    assert [query for _, query in api.created] == [{"dryRun": "All", "fieldValidation": "Strict"}]


def test_fields_that_an_older_crd_drops_are_named(tried):
    stored = copy.deepcopy(tried)
    del stored["spec"]["preRunningDeadlineSeconds"], stored["spec"]["rayClusterSpec"]["authOptions"]
    stored["spec"]["suspend"] = True  # a webhook may add what it likes
    (said,) = lines(job(FakeApi({POST: stored}), load_profile(CPU), tried))
    assert "older than KubeRay 1.7.0 and drops spec.preRunningDeadlineSeconds, spec.rayClusterSpec.authOptions" in said


def test_a_refusal_is_said_in_the_servers_words(tried):
    refused = ApiError(400, "BadRequest", 'strict decoding error: unknown field "spec.x"')
    (said,) = lines(job(FakeApi({POST: refused}), load_profile(CPU), tried))
    assert said.startswith("fail job") and 'unknown field "spec.x"' in said


def test_what_is_dropped_is_found_at_any_depth():
    sent = {"a": [{"b": 1, "c": {}}], "d": "e"}
    assert [*dropped(sent, sent, "s")] == []
    assert [*dropped(sent, {"a": [{"b": 1}], "d": "x", "more": 1}, "s")] == ["s.a.0.c"]
