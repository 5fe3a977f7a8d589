"""The platform on a real API server with RBAC: what `k8s bootstrap` writes, applied twice without a difference, with the rights that are
needed; what `doctor` says of it, and of what runs have left there."""

from __future__ import annotations

import json
import secrets
import shlex
import subprocess

import pytest
import yaml

from tests.k8s.support import CPU, H100, rendered, workload
from tests.support.kube.control_plane import ControlPlane
from zerofleet.k8s import leaks
from zerofleet.k8s.api import Api
from zerofleet.k8s.bootstrap.documents import bootstrap
from zerofleet.k8s.health.server import job
from zerofleet.k8s.paths import CLAIM, CONFIG_MAP, DEPLOYMENT, NODE, POD, RAY_CLUSTER, RAY_JOB, SECRET
from zerofleet.k8s.permissions import check_permissions, helpful, needed, role_rules
from zerofleet.k8s.profile import Profile
from zerofleet.k8s.to_yaml import to_yaml
from zerofleet.launch import cli
from zerofleet.launch.backends import kuberay_checks

pytestmark = [pytest.mark.integration, pytest.mark.further, pytest.mark.timeout(300)]

GROUP = "ml-users"
"""Of user alice (../shared/kube)."""
QUEUES = (
    "kueue/kueue.x-k8s.io_clusterqueues.yaml",
    "kueue/kueue.x-k8s.io_localqueues.yaml",
    "kueue/kueue.x-k8s.io_resourceflavors.yaml",
    "kueue/kueue.x-k8s.io_topologies.yaml",
    "volcano/scheduling.volcano.sh_queues.yaml",
)


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    plane = ControlPlane(tmp_path_factory.mktemp("control") / "plane", more_crds=QUEUES)
    yield plane
    plane.stop()


@pytest.fixture
def platform(plane, monkeypatch):
    """`platform(path, **changes)`: the documents of a profile in a namespace of their own, applied. Returns the profile."""
    monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig))

    def make(path, **sections) -> Profile:
        mapping = yaml.safe_load(path.read_text()) | {"namespace": f"n-{secrets.token_hex(3)}"}
        mapping["security"] = {"service_account": "zerofleet", "submitter_groups": [GROUP]}
        profile = Profile.model_validate(mapping | sections)
        apply(plane, profile)
        return profile

    return make


def apply(plane: ControlPlane, profile: Profile) -> None:
    plane.kubectl("apply", "--server-side", "-f", "-", text=to_yaml(bootstrap(profile)))


def there(plane: ControlPlane, profile: Profile) -> dict[str, dict]:
    """Every object as the server holds it, without the record of who wrote it when."""
    found = json.loads(plane.kubectl("get", "-o", "json", "-f", "-", text=to_yaml(bootstrap(profile))))["items"]
    for item in found:
        for bookkeeping in ("resourceVersion", "managedFields"):
            item["metadata"].pop(bookkeeping, None)
    return {f"{item['kind']} {item['metadata']['name']}": item for item in found}


@pytest.mark.parametrize("path", [CPU, H100], ids=lambda path: path.stem)
def test_the_second_time_nothing_changes(plane, platform, path):
    profile = platform(path)
    before = there(plane, profile)
    assert len(before) == len(bootstrap(profile))
    apply(plane, profile)
    assert there(plane, profile) == before
    changed = profile.model_copy(update={"labels": {"team": "other"}})
    apply(plane, changed)
    after = there(plane, changed)
    assert {item["metadata"]["labels"]["team"] for item in after.values()} == {"other"}


def test_volcanos_queue_is_taken(plane, platform):
    profile = platform(H100, queue={"kind": "volcano", "name": f"q-{secrets.token_hex(3)}"})
    assert f"Queue {profile.queue.name}" in there(plane, profile)


def may(api: Api, user: str, groups: list[str], namespace: str, verb: str, resource: str, group: str = "") -> bool:
    """The server's own answer about anybody."""
    name, _, sub = resource.partition("/")
    attributes = {"verb": verb, "resource": name, "group": group, "subresource": sub, "namespace": namespace}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "groups": groups, "resourceAttributes": attributes},
    }
    return bool(api.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)["status"]["allowed"])


@pytest.mark.parametrize("path", [CPU, H100], ids=lambda path: path.stem)
def test_who_submits_may_do_what_a_run_needs_and_nothing_else(platform, path):
    profile = platform(path)
    check_permissions(Api("alice"), profile)
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": profile.namespace},
    }
    answer = Api("alice").create("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", review)
    own = {"selfsubjectaccessreviews", "selfsubjectrulesreviews"}  # everybody may ask what he may do
    found = {
        (group, resource, verb)
        for rule in answer["status"]["resourceRules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        if resource not in own
    }
    granted = {
        (rule["apiGroups"][0], rule["resources"][0], verb)
        for rule in role_rules([*needed(profile), *helpful(profile)])
        for verb in rule["verbs"]
    }
    assert found == granted

    admin, here = Api("admin"), profile.namespace
    assert may(admin, "bob", [GROUP], here, "create", "rayjobs", "ray.io")
    for namespace, verb, resource, group in (
        ("kube-system", "get", "secrets", ""),
        (here, "get", "secrets", ""),
        (here, "create", "pods", ""),
        (here, "create", "pods/exec", ""),
        (here, "create", "rolebindings", "rbac.authorization.k8s.io"),
        (here, "delete", "networkpolicies", "networking.k8s.io"),
        ("default", "create", "rayjobs", "ray.io"),
        ("", "list", "rayjobs", "ray.io"),
        ("", "list", "nodes", ""),
    ):
        assert not may(admin, "bob", [GROUP], namespace, verb, resource, group), (namespace, verb, resource)
        assert may(admin, "root", ["system:masters"], namespace, verb, resource, group)


def test_pods_may_do_nothing_and_strangers_neither(platform):
    profile = platform(CPU)
    admin, account = Api("admin"), f"system:serviceaccount:{profile.namespace}:zerofleet"
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{profile.namespace}", "system:authenticated"]
    for kind, sub, verbs in [*needed(profile), *helpful(profile)]:
        for verb in verbs:
            resource = f"{kind.plural}/{sub}" if sub else kind.plural
            assert not may(admin, account, groups, profile.namespace, verb, resource, kind.group)
            assert not may(admin, "eve", ["system:authenticated"], profile.namespace, verb, resource, kind.group)
    with pytest.raises(Exception, match="forbidden"):
        Api("alice").get(RAY_JOB.path("default"))


# -- doctor --------------------------------------------------------------------------------------------------------
PLANTED = "PLANTEDvalue"


@pytest.fixture
def cluster(plane, platform, tmp_path):
    """A platform with everything that a run needs but a volume: node, operator, Secret. Returns the profile and its file."""
    api, operator = Api("admin"), f"o-{secrets.token_hex(3)}"
    profile = platform(
        CPU,
        operator={"namespace": operator},
        limits={"disruption_budget": False},  # policy/v1 is younger than the API server
        secret_env=[{"variable": "WANDB_API_KEY", "secret": "wandb", "key": "api-key"}],
    )
    file = tmp_path / "platform.yaml"
    file.write_text(yaml.safe_dump(profile.model_dump(mode="json")))
    plane.kubectl("-n", profile.namespace, "create", "secret", "generic", "wandb", f"--from-literal=api-key={PLANTED}")
    api.create(NODE.cluster_path(), {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"}})
    room = {"cpu": "16", "memory": "64Gi", "pods": "20"}
    status = {"capacity": room, "allocatable": room, "conditions": [{"type": "Ready", "status": "True"}]}
    api.patch(f"{NODE.cluster_path('node')}/status", {"status": status})
    api.patch(NODE.cluster_path("node"), {"spec": {"taints": None}})
    plane.kubectl("create", "namespace", operator)
    labels = {"app.kubernetes.io/name": "kuberay-operator"}
    template = {
        "metadata": {"labels": labels},
        "spec": {"containers": [{"name": "operator", "image": "quay.io/kuberay/operator:v1.7.0"}]},
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "kuberay-operator", "labels": labels},
        "spec": {"selector": {"matchLabels": labels}, "template": template},
    }
    path = DEPLOYMENT.path(operator)
    api.create(path, deployment)
    api.patch(f"{path}/kuberay-operator/status", {"status": {"replicas": 1, "readyReplicas": 1}})
    yield profile, file
    api.delete(NODE.cluster_path("node"))


def doctor(capsys, *arguments: str) -> tuple[int, dict[str, str]]:
    """Its exit code, and the level and text of every line by its name."""
    capsys.readouterr()
    code = cli.main(["doctor", "--backend", "kuberay", *arguments])
    out = capsys.readouterr().out
    assert PLANTED not in out
    found = [line.split(maxsplit=2) for line in out.splitlines() if not line.startswith("  ")]
    return code, {name: f"{level} {text}" for level, name, text in found}


def test_doctor_says_what_a_cluster_lacks_and_that_it_lacks_nothing(plane, cluster, capsys):
    profile, file = cluster
    code, said = doctor(capsys, "--profile", str(file), "--context", "admin")
    assert code == 1 and [name for name, text in said.items() if not text.startswith("ok ")] == ["storage"], said
    assert "no StorageClass that would make one" in said["storage"]
    bound = {"status": {"phase": "Bound", "capacity": {"storage": "100Gi"}}}
    Api("admin").patch(f"{CLAIM.path(profile.namespace, 'zerofleet')}/status", bound)
    code, said = doctor(capsys, "--profile", str(file), "--context", "admin")
    assert code == 0 and all(text.startswith("ok ") for text in said.values()), said
    assert set(said) == {
        "cluster",
        "kinds",
        "namespace",
        "rights",
        "account",
        "secrets",
        "storage",
        "job",
        "operator",
        "head",
        "workers",
    }
    assert json.loads(plane.kubectl("-n", profile.namespace, "get", "rayjobs", "-o", "json"))["items"] == []

    code, said = doctor(capsys, "--profile", str(file), "--context", "alice")
    assert code == 0 and said["rights"].startswith("ok ") and said["job"].startswith("ok ")
    unseen = {name for name, text in said.items() if text.startswith("warn you may not look")}
    assert unseen == {"secrets", "operator", "nodes"}

    plane.kubectl("-n", profile.namespace, "delete", "secret", "wandb")
    code, said = doctor(capsys, "--profile", str(file), "--context", "admin")
    assert code == 1 and said["secrets"].startswith("fail Secret wandb is not there")
    code, said = doctor(capsys, "--context", "admin")
    assert code == 0 and set(said) == {"cluster", "kinds", "profile"}


def test_what_a_secret_holds_stays_on_the_server(cluster):
    profile, _ = cluster
    path = SECRET.path(profile.namespace)
    for found in (Api("admin").get_metadata(f"{path}/wandb"), *Api("admin").list_metadata(path)["items"]):
        assert set(found) <= {"kind", "apiVersion", "metadata"}
    assert "data" in Api("admin").get(f"{path}/wandb")


def test_a_field_that_the_clusters_crd_lacks_is_found(cluster):
    profile, _ = cluster
    tried = rendered(profile, workload(CPU, profile=profile))[-1]
    tried["spec"]["rayClusterSpec"]["ofTomorrow"] = True
    (check,) = job(Api("admin"), profile, tried)
    assert check.level == "fail" and "drops spec.rayClusterSpec.ofTomorrow" in check.text


def test_a_server_that_is_not_there_is_said_soon(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(kuberay_checks, "PATIENCE_S", 0.1)
    file = tmp_path / "config"
    clusters = [{"name": "a", "cluster": {"server": "https://127.0.0.1:1"}}]
    context = {"name": "a", "context": {"cluster": "a", "user": "a"}}
    user = {"name": "a", "user": {"token": PLANTED}}
    file.write_text(
        yaml.safe_dump({"clusters": clusters, "contexts": [context], "users": [user], "current-context": "a"})
    )
    monkeypatch.setenv("KUBECONFIG", str(file))
    code, said = doctor(capsys)
    assert code == 1 and list(said) == ["cluster"] and "no answer from https://127.0.0.1:1" in said["cluster"]


def test_what_runs_have_left_is_found_and_removed_by_the_command_that_is_told(plane, platform, capsys, monkeypatch):
    namespace = platform(CPU).namespace
    labels = {"app.kubernetes.io/managed-by": "zerofleet", "app.kubernetes.io/instance": "first"}
    container = {
        "name": "ray-head",
        "image": "registry.example.com/zerofleet:1",
        "resources": {"requests": {"cpu": "4"}},
    }
    pod = {"metadata": {"labels": {**labels, "ray.io/cluster": "first-abcde"}}, "spec": {"containers": [container]}}
    api = Api("admin")
    made = [
        (RAY_CLUSTER, "first-abcde", {"spec": {"headGroupSpec": {"rayStartParams": {}, "template": pod}}}),
        (CONFIG_MAP, "first-job", {"data": {}}),
        (POD, "first-abcde-head", pod),
    ]
    for kind, name, content in made:
        metadata = {**content.get("metadata", {"labels": labels}), "name": name}
        body = {"apiVersion": kind.api_version, "kind": kind.name, **content, "metadata": metadata}
        api.create(kind.path(namespace), body)
    place = ("--leaks", "--context", "admin", "--namespace", namespace)
    assert doctor(capsys, *place) == (0, {"leaks": f"ok none in namespace {namespace}"})  # they are young
    monkeypatch.setattr(leaks, "SETTLE_S", -60.0)
    code, said = doctor(capsys, *place)
    assert code == 0 and set(said) == {"cluster", "configmap"}
    assert "RayCluster first-abcde, that belongs to no RayJob: 1 pods, which hold 4 cpu" in said["cluster"]
    for text in said.values():
        subprocess.run(shlex.split(text.rpartition(". ")[2]), check=True, timeout=60, capture_output=True)
    code, said = doctor(capsys, *place)
    assert set(said) == {"pods"} and "first-abcde-head" in said["pods"]  # no garbage collector knew whose it was
    assert doctor(capsys, "--leaks", "--context", "alice", "--namespace", namespace)[1]["leaks"].startswith(
        "warn you may not list secrets"
    )
