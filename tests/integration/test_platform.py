"""What `k8s bootstrap` writes, applied to a real API server with RBAC: twice without a difference, and its rights are those that are needed."""

from __future__ import annotations

import json
import secrets

import pytest
import yaml

from tests.k8s.support import CPU, H100
from tests.support.kube.control_plane import ControlPlane
from zerofleet.k8s.api import Api
from zerofleet.k8s.bootstrap.documents import bootstrap
from zerofleet.k8s.paths import RAY_JOB
from zerofleet.k8s.permissions import check_permissions, helpful, needed, role_rules
from zerofleet.k8s.profile import Profile
from zerofleet.k8s.to_yaml import to_yaml

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

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
