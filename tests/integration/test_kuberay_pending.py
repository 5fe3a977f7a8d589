"""Why a run does not run, against a real API server: its own scheduler's words, and what other controllers would write there."""

from __future__ import annotations

import json
import os
import re
import secrets
import time

import pytest

from tests.support.kube.cluster import Cluster
from tests.support.kube.control_plane import ControlPlane
from zerofleet.benchmarks.hosts.harness import why_not
from zerofleet.k8s.api import Api
from zerofleet.k8s.observer import Observer
from zerofleet.k8s.pending import why_pending

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

NODES = "/api/v1/nodes"


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory):
    plane = ControlPlane(tmp_path_factory.mktemp("control") / "plane")
    yield plane
    plane.stop()


class Place:
    """A namespace with a RayJob in it, as KubeRay has begun to look at it; and what is seen of it."""

    def __init__(self, plane: ControlPlane, queue: dict[str, str]) -> None:
        self._plane, self.namespace = plane, f"n-{secrets.token_hex(3)}"
        plane.kubectl("create", "namespace", self.namespace)
        self.api = Api("admin")
        job = {
            "apiVersion": "ray.io/v1",
            "kind": "RayJob",
            "metadata": {"name": "first", "labels": queue},
            "spec": {"entrypoint": "x", "suspend": bool(queue)},
        }
        made = self.api.create(f"/apis/ray.io/v1/namespaces/{self.namespace}/rayjobs", job)
        self.uid = made["metadata"]["uid"]
        if not queue:
            status = {"jobDeploymentStatus": "Initializing", "rayClusterName": "first-abcde"}
            self.api.patch(f"/apis/ray.io/v1/namespaces/{self.namespace}/rayjobs/first/status", {"status": status})

    def core(self, plural: str) -> str:
        return f"/api/v1/namespaces/{self.namespace}/{plural}"

    def pod(self, name: str = "first-abcde-workers-0", **spec) -> None:
        labels = {"app.kubernetes.io/instance": "first", "app.kubernetes.io/component": "worker"}
        container = {"name": "ray-worker", "image": "registry.example.com/zerofleet:1", **spec.pop("container", {})}
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": labels},
            "spec": {"containers": [container], **spec},
        }
        self.api.create(self.core("pods"), body)

    def warn(self, kind: str, name: str, message: str) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": "e", "name": f"e-{secrets.token_hex(4)}"},
            "involvedObject": {"kind": kind, "name": name, "namespace": self.namespace},
            "type": "Warning",
            "reason": "FailedToCreatePod",
            "message": message,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": {"component": "operator"},
        }
        self.api.create(self.core("events"), event)

    def workload(self, reason: str, message: str) -> None:
        path = f"/apis/kueue.x-k8s.io/v1beta2/namespaces/{self.namespace}/workloads"
        owner = {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": "first", "uid": self.uid}
        template = {"spec": {"containers": [{"name": "a", "image": "b"}]}}
        spec = {"queueName": "research", "podSets": [{"name": "main", "count": 1, "template": template}]}
        body = {
            "apiVersion": "kueue.x-k8s.io/v1beta2",
            "kind": "Workload",
            "metadata": {"name": "rayjob-first", "ownerReferences": [owner]},
            "spec": spec,
        }
        self.api.create(path, body)
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        condition = {
            "type": "QuotaReserved",
            "status": "False",
            "reason": reason,
            "message": message,
            "lastTransitionTime": now,
        }
        self.api.patch(f"{path}/rayjob-first/status", {"status": {"conditions": [condition]}})


@pytest.fixture
def place(control_plane, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig))
    made: list[Place] = []

    def make(**queue: str) -> Place:
        made.append(Place(control_plane, queue))
        return made[-1]

    return make


@pytest.fixture
def node(control_plane, monkeypatch):
    """`node(taints)`: one node with eight CPUs and no GPU, for the real scheduler."""
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig))
    api = Api("admin")

    def make(taints: list[dict] | None) -> None:
        api.create(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"}})
        capacity = {"cpu": "8", "memory": "64Gi", "pods": "20"}
        status = {"capacity": capacity, "allocatable": capacity, "conditions": [{"type": "Ready", "status": "True"}]}
        api.patch(f"{NODES}/node/status", {"status": status})
        api.patch(f"{NODES}/node", {"spec": {"taints": taints}})

    yield make
    api.delete(f"{NODES}/node")


def assert_seen(place: Place, kind: str, words: str) -> None:
    """The reason comes to be of this kind, in these words: what is seen of several objects comes one after the other."""
    with Observer(place.api, place.namespace, "first") as observer:
        deadline = time.monotonic() + 20
        reason = None
        while time.monotonic() < deadline:
            observer.wait(0.2)
            reason = why_pending(observer.observed())
            if reason is not None and reason.kind == kind and words in reason.sentence:
                return
    raise AssertionError(f"not {kind!r}, {words!r} but {reason}")


GPU = {"resources": {"limits": {"nvidia.com/gpu": "8"}}}


def test_not_enough_gpus(place, node):
    node(None)
    here = place()
    here.pod(container=GPU)
    assert_seen(here, "not enough GPUs", "asks for 8 nvidia.com/gpu, and 1 of 1 nodes have fewer free")


def test_an_untolerated_taint(place, node):
    node([{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}])
    here = place()
    here.pod()
    assert_seen(here, "untolerated taint", "1 of 1 nodes have the taint nvidia.com/gpu=present")


def test_an_unbound_volume_and_a_missing_one(place, node):
    node(None)
    here = place()
    here.pod(volumes=[{"name": "storage", "persistentVolumeClaim": {"claimName": "zerofleet"}}])
    assert_seen(here, "unbound volume", "'zerofleet', which is not there")
    other = place()
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    other.api.create(
        other.core("persistentvolumeclaims"),
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "zerofleet"}, "spec": spec},
    )
    other.pod(volumes=[{"name": "storage", "persistentVolumeClaim": {"claimName": "zerofleet"}}])
    assert_seen(other, "unbound volume", "'zerofleet' (Pending), which has no volume")


def test_an_image_that_cannot_be_pulled(place):
    here = place()
    here.pod(nodeName="elsewhere")
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}}
    container = {
        "name": "ray-worker",
        "image": "registry.example.com/zerofleet:1",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": waiting,
    }
    here.api.patch(f"{here.core('pods')}/first-abcde-workers-0/status", {"status": {"containerStatuses": [container]}})
    assert_seen(here, "image pull error", "cannot pull the image registry.example.com/zerofleet:1 (ImagePullBackOff")


def test_a_webhook_that_refuses_and_a_quota_that_is_used_up(place):
    here = place()
    here.warn(
        "RayCluster",
        "first-abcde",
        'pods "a" is forbidden: exceeded quota: compute, requested: cpu=4, used: cpu=8, limited: cpu=8',
    )
    assert_seen(here, "no quota", "ResourceQuota has no room")
    other = place()
    other.warn("RayCluster", "first-abcde", 'admission webhook "policy.example.com" denied the request: no cost centre')
    assert_seen(other, "webhook refusal", "policy.example.com refuses")


@pytest.mark.parametrize(
    ("reason", "message", "kind"),
    [
        (
            "Pending",
            "couldn't assign flavors to pod set workers: insufficient unused quota for nvidia.com/gpu in flavor h100, 8 more needed",
            "no quota",
        ),
        ("Inadmissible", "ClusterQueue research is inactive", "queue stopped"),
    ],
)
def test_kueues_queue(place, reason, message, kind):
    here = place(**{"kueue.x-k8s.io/queue-name": "research"})
    here.warn("RayJob", "first", "ErrWorkloadCompose: exceeded quota, or so it seemed")
    here.workload(reason, message)
    assert_seen(here, kind, message)


def test_the_reason_is_said_on_the_laptop_and_a_run_that_never_began_is_deleted(control_plane, tmp_path, tiny_corpus):
    if reason := why_not():
        pytest.skip(reason)
    with Cluster(control_plane, tmp_path, num_nodes=0) as cluster:
        followed = cluster.start(
            "submit",
            str(cluster.recipe(tiny_corpus)),
            "run.name=first",
            "--backend",
            "kuberay",
            "--profile",
            str(cluster.profile()),
        )
        assert followed.stdout is not None
        for line in followed.stdout:
            if "no nodes available" in line or "fits no node" in line:
                break
        else:
            raise AssertionError("no reason was given")
        status = json.loads(cluster("status", "first", "--backend", "kuberay", "--json").stdout)
        assert status["state"] == "PENDING" and re.search(r"pod first-\w+-head fits no node", status["why"])
        stopped = cluster("stop", "first", "--backend", "kuberay")
        assert stopped.returncode == 0 and "had no driver yet" in stopped.stdout
        assert "was deleted before the run had ended" in followed.communicate(timeout=30)[0]
        assert followed.returncode == 1
        assert cluster.objects() == {}
    assert cluster.operator.errors == []
    assert os.environ["KUBECONFIG"] == str(control_plane.kubeconfig)
