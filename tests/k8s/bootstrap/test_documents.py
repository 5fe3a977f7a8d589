"""What the platform is made of: accepted by the API server's own rules, open for what runs do and closed for the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fractions import Fraction

import pytest

from tests.k8s.bootstrap.support import VARIANTS, Pod, allowed, of_kind, variant
from tests.k8s.crds import needs_crds, refusals
from tests.k8s.support import CPU, H100, ROOT, changed_profile, pods_of, rendered, workload
from zerofleet.k8s.bootstrap.documents import CONCERNS, bootstrap, summary
from zerofleet.k8s.bootstrap.namespace import ENFORCE
from zerofleet.k8s.bootstrap.rules import lint_platform
from zerofleet.k8s.permissions import helpful, needed, role_rules
from zerofleet.k8s.quantity import amount

every = pytest.mark.parametrize("name", VARIANTS)
CORE = {
    "ConfigMap": "V1ConfigMap",
    "Namespace": "V1Namespace",
    "ServiceAccount": "V1ServiceAccount",
    "Role": "V1Role",
    "RoleBinding": "V1RoleBinding",
    "NetworkPolicy": "V1NetworkPolicy",
    "PersistentVolumeClaim": "V1PersistentVolumeClaim",
}
CUSTOM = {"ClusterQueue", "LocalQueue", "ResourceFlavor", "Topology", "Queue"}
MONITORING = {"PodMonitor", "PrometheusRule"}
"""Of the Prometheus operator, whose CRDs are not beside the project: tests/k8s/monitoring reads them."""


@every
def test_nothing_is_wrong_with_it(name):
    assert [str(finding) for finding in lint_platform(variant(name)) if finding.level == "error"] == []


@every
def test_the_api_server_accepts_custom_objects(name):
    needs_crds()
    found = [document for document in bootstrap(variant(name)) if document["kind"] in CUSTOM]
    assert {document["metadata"]["name"]: refusals(document) for document in found if refusals(document)} == {}


def test_the_check_of_the_crds_is_strict():
    needs_crds()
    (queue,) = of_kind(bootstrap(variant("h100")), "ClusterQueue")
    queue["spec"]["resourceGroup"] = queue["spec"].pop("resourceGroups")
    assert refusals(queue)


def test_rules_of_the_crds_are_asked_too():
    """CEL: what no schema says."""
    needs_crds()
    (queue,) = of_kind(bootstrap(variant("h100")), "ClusterQueue")
    queue["spec"]["resourceGroups"][0]["coveredResources"].append("example.com/other")
    (found,) = refusals(queue)
    assert found.startswith(".spec.resourceGroups[0]") and "coveredResources" in found


@every
def test_core_objects_are_whole_for_the_official_client(name):
    client = pytest.importorskip("kubernetes.client")
    api = client.ApiClient()
    for document in bootstrap(variant(name)):
        assert document["kind"] in {*CORE, *CUSTOM, *MONITORING}
        if model := CORE.get(document["kind"]):
            assert (
                api.sanitize_for_serialization(api.deserialize(json.dumps(document), model, "application/json"))
                == document
            )


@every
def test_kubernetes_validate_accepts_core_objects(name):
    validate = pytest.importorskip("kubernetes_validate")
    for document in bootstrap(variant(name)):
        if document["kind"] in CORE:
            validate.validate(document, "1.31", strict=True)


@every
def test_nothing_is_there_twice_and_the_namespace_comes_before_what_lies_in_it(name):
    profile = variant(name)
    documents = bootstrap(profile)
    names = [(document["kind"], document["metadata"]["name"]) for document in documents]
    assert len(names) == len(set(names)) and names[0] == ("Namespace", "training")
    assert {document["metadata"].get("namespace", "training") for document in documents} == {"training"}
    assert all("app.kubernetes.io/instance" not in document["metadata"]["labels"] for document in documents)
    assert documents == [document for concern in CONCERNS for document in concern(profile)]


def test_it_is_the_same_in_every_process():
    script = (
        "from zerofleet.k8s.bootstrap.documents import bootstrap\nfrom zerofleet.k8s.to_yaml import to_yaml\n"
        f"from zerofleet.launch.workload import load_profile\nprint(to_yaml(bootstrap(load_profile({str(H100)!r}))))"
    )
    outputs = set()
    for seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
        )
        outputs.add(done.stdout)
    assert len(outputs) == 1


def test_the_namespace_admits_what_the_fabric_needs_and_no_more():
    for name, level in (("h100", "restricted"), ("host network", "privileged")):
        labels = bootstrap(variant(name))[0]["metadata"]["labels"]
        assert labels[ENFORCE] == level


@every
def test_the_pods_account_has_no_rights_and_the_submitters_have_those_that_are_asked_for(name):
    profile = variant(name)
    documents = bootstrap(profile)
    accounts = {document["metadata"]["name"] for document in of_kind(documents, "ServiceAccount")}
    assert accounts == ({profile.security.service_account} - {None})
    assert not any(document["automountServiceAccountToken"] for document in of_kind(documents, "ServiceAccount"))
    (role,) = of_kind(documents, "Role")
    assert role["rules"] == role_rules([*needed(profile), *helpful(profile)])
    assert not {"*", "secrets", "pods/exec", "roles"} & {
        resource for rule in role["rules"] for resource in rule["resources"]
    }
    assert not {"*", "escalate", "bind"} & {verb for rule in role["rules"] for verb in rule["verbs"]}
    bindings = of_kind(documents, "RoleBinding")
    subjects = [subject for binding in bindings for subject in binding["subjects"]]
    assert [subject["name"] for subject in subjects] == profile.security.submitter_groups
    assert {subject["kind"] for subject in subjects} <= {"Group"}


def connections(name: str, path):
    """The policies of a platform, and the pods of a run on it."""
    profile = variant(name)
    job = rendered(profile, workload(path, profile=profile))[-1]
    pods = {what: Pod("training", template["metadata"]["labels"]) for what, template in pods_of(job).items()}
    return of_kind(bootstrap(profile), "NetworkPolicy"), pods


@pytest.mark.parametrize(("name", "path"), [("cpu", CPU), ("h100", H100)])
def test_the_pods_of_runs_reach_each_other_and_dns(name, path):
    policies, pods = connections(name, path)
    for source in pods.values():
        for target in pods.values():
            assert allowed(policies, source, target, 23456)
        dns = Pod("kube-system", {"k8s-app": "kube-dns"})
        assert allowed(policies, source, dns, 53, "UDP") and allowed(policies, source, dns, 53)
        assert allowed(policies, source, Pod(address="169.254.20.10"), 53, "UDP")
        assert not allowed(policies, source, dns, 9153)


@pytest.mark.parametrize(("name", "path"), [("cpu", CPU), ("h100", H100)])
def test_nobody_else_reaches_them_but_the_operator_the_heads_dashboard(name, path):
    policies, pods = connections(name, path)
    operator = Pod("kuberay-operator", {"app.kubernetes.io/name": "kuberay-operator"})
    stranger = Pod("training", {"app": "notebook"})
    assert allowed(policies, operator, pods["head"], 8265)
    assert not allowed(policies, operator, pods["head"], 6379) and not allowed(
        policies, operator, pods["workers"], 8265
    )
    for other in (
        stranger,
        Pod("elsewhere", pods["head"].labels),
        Pod("default", operator.labels),
        Pod(address="10.0.0.1"),
    ):
        assert not any(allowed(policies, other, pod, 8265) for pod in pods.values())
    assert not allowed(policies, pods["head"], stranger, 80) and not allowed(
        policies, stranger, Pod(address="1.1.1.1"), 443
    )


def test_prometheus_reaches_the_ports_for_metrics_with_its_operator_and_without():
    for name in ("cpu", "monitored"):
        policies, pods = connections(name, CPU)
        prometheus, other = Pod("monitoring", {"app": "prometheus"}), Pod("elsewhere", {"app": "prometheus"})
        for port, is_open in ((8090, True), (8080, True), (6379, False), (8265, False)):
            assert allowed(policies, prometheus, pods["head"], port) == is_open
            assert not allowed(policies, other, pods["head"], port)


def test_pods_reach_outside_what_the_profile_names_only():
    policies, pods = connections("h100", H100)
    assert allowed(policies, pods["workers"], Pod(address="52.216.1.1"), 443)
    assert not allowed(policies, pods["workers"], Pod(address="52.216.1.1"), 22)
    policies, pods = connections("cpu", CPU)
    assert not allowed(policies, pods["workers"], Pod(address="52.216.1.1"), 443)
    policies, pods = connections("store inside", CPU)
    assert allowed(policies, pods["head"], Pod("minio", {"app": "minio"}), 9000)
    assert not allowed(policies, pods["head"], Pod("minio", {"app": "minio"}), 9001)
    assert allowed(policies, pods["head"], Pod(address="10.9.3.4"), 2049)


def test_workers_in_their_hosts_network_are_heard():
    policies, pods = connections("host network", H100)
    assert allowed(policies, Pod(address="10.1.2.3"), pods["head"], 6379)
    assert not allowed(policies, Pod(address="10.2.2.3"), pods["head"], 6379)


@pytest.mark.parametrize(("name", "path"), [("h100", H100), ("efa", H100), ("kueue on one pool", CPU)])
def test_the_quota_covers_as_many_runs_as_there_are_nodes_and_every_resource_that_their_pods_ask_for(name, path):
    profile = variant(name)
    job = rendered(profile, workload(path, "cluster.nodes=1", profile=profile))[-1]
    documents = bootstrap(profile)
    (queue,) = of_kind(documents, "ClusterQueue")
    (group,) = queue["spec"]["resourceGroups"]
    flavors = {flavor["metadata"]["name"]: flavor["spec"] for flavor in of_kind(documents, "ResourceFlavor")}
    used: dict[tuple[str, str], Fraction] = {}
    for template in pods_of(job).values():
        selector = template["spec"].get("nodeSelector", {})
        (flavor,) = [
            each["name"] for each in group["flavors"] if flavors[each["name"]].get("nodeLabels", {}) == selector
        ]
        for resource, text in template["spec"]["containers"][0]["resources"]["requests"].items():
            assert resource in group["coveredResources"]
            used[flavor, resource] = used.get((flavor, resource), Fraction(0)) + profile.workers.max_nodes * amount(
                text
            )
    quota = {
        (flavor["name"], entry["name"]): amount(entry["nominalQuota"])
        for flavor in group["flavors"]
        for entry in flavor["resources"]
    }
    assert all(used[key] <= quota[key] for key in used)
    gpus = [value for (_, resource), value in quota.items() if resource == "nvidia.com/gpu"]
    assert sum(gpus) == profile.workers.max_nodes * profile.workers.gpus
    (local,) = of_kind(documents, "LocalQueue")
    assert local["spec"]["clusterQueue"] == queue["metadata"]["name"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == local["metadata"]["name"]


def test_the_flavor_of_workers_says_their_topology_and_tolerations():
    flavors = {
        flavor["metadata"]["name"]: flavor["spec"] for flavor in of_kind(bootstrap(variant("h100")), "ResourceFlavor")
    }
    (topology,) = of_kind(bootstrap(variant("h100")), "Topology")
    workers = flavors["training-research-workers"]
    assert workers["topologyName"] == topology["metadata"]["name"]
    assert workers["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert [level["nodeLabel"] for level in topology["spec"]["levels"]] == [
        "topology.kubernetes.io/rack",
        "kubernetes.io/hostname",
    ]
    assert "topologyName" not in flavors["training-research-head"]


def test_queues_that_are_there_are_left_alone():
    kinds = {document["kind"] for document in bootstrap(variant("kueue with a queue that is there"))} & CUSTOM
    assert kinds == {"LocalQueue"}
    assert of_kind(bootstrap(variant("volcano's own")), "Queue") == []
    (bounded,), (unbounded,) = (
        of_kind(bootstrap(variant(name)), "Queue") for name in ("volcano", "volcano without bound")
    )
    assert bounded["spec"]["capability"]["nvidia.com/gpu"] == "128" and "capability" not in unbounded["spec"]


def test_a_claim_is_made_when_its_size_is_said():
    (claim,) = of_kind(bootstrap(variant("storage class")), "PersistentVolumeClaim")
    assert claim["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "nfs",
        "resources": {"requests": {"storage": "100Gi"}},
    }
    assert of_kind(bootstrap(variant("h100")), "PersistentVolumeClaim") == []


def test_monitoring_is_there_where_its_operator_is():
    assert {document["kind"] for document in bootstrap(variant("monitored"))} >= MONITORING
    assert not (MONITORING | {"ConfigMap"}) & {document["kind"] for document in bootstrap(variant("cpu"))}


def test_what_stays_to_be_done_by_hand_is_said():
    said = "\n".join(summary(variant("h100")))
    assert "hugging-face, registry, wandb, zerofleet-s3" in said and "PersistentVolumeClaim zerofleet" in said
    assert "nobody may submit yet" not in said and "nobody may submit yet" in "\n".join(summary(variant("nobody's")))
    identity = changed_profile(H100, storage__workload_identity=True)
    assert "cloud identity" in "\n".join(summary(identity))
