"""What no live run owns is found in what a namespace holds; what lives, or may be on its way, is left out."""

from __future__ import annotations

import shlex

from tests.k8s.health.support import FORBIDDEN, FakeApi
from tests.k8s.objects import NOW, stamp
from zerofleet.k8s.leaks import SETTLE_S, Found, collect, leaks
from zerofleet.k8s.paths import BUDGET, CLAIM, CONFIG_MAP, POD, RAY_CLUSTER, RAY_JOB, SECRET

OLD = SETTLE_S + 60
LABELS = {"app.kubernetes.io/managed-by": "zerofleet", "app.kubernetes.io/instance": "first"}


def thing(name: str, age_s: float = OLD, labels=LABELS, **content) -> dict:
    metadata = {"name": name, "labels": labels, "creationTimestamp": stamp(NOW - age_s), **content.pop("metadata", {})}
    return {"metadata": metadata, **content}


def job(deployment: str, status: str = "", ended_s: float | None = None, ttl_s: int = 300) -> dict:
    ended = {} if ended_s is None else {"endTime": stamp(NOW - ended_s)}
    return thing(
        "first",
        spec={"ttlSecondsAfterFinished": ttl_s, "shutdownAfterJobFinishes": True},
        status={"jobDeploymentStatus": deployment, "jobStatus": status, **ended},
    )


def cluster(owner: str = "first", age_s: float = OLD) -> dict:
    owners = [{"kind": "RayJob", "name": owner}] if owner else []
    template = {"metadata": {"labels": LABELS}}
    return thing(
        "first-abc", age_s, {}, metadata={"ownerReferences": owners}, spec={"headGroupSpec": {"template": template}}
    )


def pod(name: str, phase: str = "Running", age_s: float = OLD, of: str = "first-abc", gpus: int = 8) -> dict:
    requests = {"cpu": "96", "nvidia.com/gpu": str(gpus)}
    container = {"name": "ray-worker", "resources": {"requests": requests}}
    return thing(
        name, age_s, {**LABELS, "ray.io/cluster": of}, spec={"containers": [container]}, status={"phase": phase}
    )


def found(jobs=(), clusters=(), pods=(), small=(), unseen=(), stopped=()) -> list[str]:
    seen = Found(tuple(jobs), tuple(clusters), tuple(pods), tuple(small), tuple(unseen), frozenset(stopped))
    checks = list(leaks(seen, "training", "east", NOW))
    assert {check.level for check in checks} <= {"warn"}
    return [f"{check.name}: {check.text}" for check in checks]


def command(line: str) -> list[str]:
    return shlex.split(line.rpartition(". ")[2])


def test_a_run_that_lives_leaks_nothing():
    small = [(CONFIG_MAP, thing("first-job")), (BUDGET, thing("first"))]
    assert found([job("Running", "RUNNING")], [cluster()], [pod("a"), pod("b")], small) == []
    assert found([job("Failed", "FAILED", ended_s=300 + OLD)], [], [], small) == []  # resume reads it


def test_a_cluster_whose_job_is_gone_is_told_with_what_its_pods_hold():
    (line,) = found([], [cluster()], [pod("a"), pod("b"), pod("c", "Failed")])
    assert line.startswith(
        "cluster: RayCluster first-abc, whose RayJob first is gone: 2 pods, which hold 192 cpu, 16 nvidia.com/gpu. "
    )
    assert command(line) == ["kubectl", "--context", "east", "-n", "training", "delete", "raycluster", "first-abc"]
    (line,) = found([], [cluster(owner="")])
    assert "that belongs to no RayJob: no pod that runs" in line


def test_a_cluster_that_outlives_its_run_is_told_after_the_ttl():
    late = [job("Complete", "SUCCEEDED", ended_s=300 + OLD)]
    line, of_job = found(late, [cluster()], [pod("a")])
    assert "RayCluster first-abc of run first, which ended 0.3 hours ago: 1 pods" in line
    assert command(line)[:5] == ["zerofleet", "stop", "first", "--backend", "kuberay"]
    assert of_job.startswith("job: RayJob first, which finished") and command(of_job)[-2:] == ["rayjob", "first"]
    assert found([job("Complete", "SUCCEEDED", ended_s=OLD)], [cluster()], [pod("a")]) == []
    assert found([job("Complete", "SUCCEEDED", ended_s=OLD, ttl_s=10**6)], [cluster()]) == []


def test_a_run_that_was_stopped_is_left_for_resume():
    """Its driver ended with 0, which KubeRay calls SUCCEEDED."""
    over = [job("Complete", "SUCCEEDED", ended_s=300 + OLD)]
    assert found(over, stopped=["first"]) == []
    assert len(found(over, stopped=["other"])) == 1
    assert found(over, unseen=["configmaps"]) == ["leaks: you may not list configmaps: those were not looked at"]
    (of_cluster,) = found(over, [cluster()], [pod("a")], stopped=["first"])
    assert of_cluster.startswith("cluster: ")  # its pods are leaked all the same


def test_pods_without_a_cluster_are_told_together():
    (line,) = found([], [], [pod("a"), pod("b", age_s=SETTLE_S - 60), pod("c")])
    assert line.startswith("pods: of run first, whose RayJob is gone: 2 pods") and command(line)[-2:] == ["a", "c"]


def test_small_objects_are_told_unless_a_submit_may_be_at_them():
    young = [(CONFIG_MAP, thing("first-job", SETTLE_S - 60))]
    assert found(small=young) == []
    small = [(CONFIG_MAP, thing("first-job")), (SECRET, thing("s")), (CLAIM, thing("c"))]
    lines = found(small=small)
    assert [command(line)[-2:] for line in lines] == [
        ["configmap", "first-job"],
        ["secret", "s"],
        ["persistentvolumeclaim", "c"],
    ]
    assert found([job("Running")], small=small) == []
    assert found(small=[(CONFIG_MAP, thing("x", metadata={"deletionTimestamp": stamp(NOW)}))]) == []


def test_what_may_not_be_listed_is_said():
    assert found(unseen=["secrets"]) == ["leaks: you may not list secrets: those were not looked at"]


def test_what_carries_our_labels_is_collected_and_secrets_without_their_content():
    foreign = thing("other", labels={}, spec={"headGroupSpec": {"template": {"metadata": {}}}})
    paths = {kind.path("training"): {"items": []} for kind in (RAY_JOB, POD, CONFIG_MAP, CLAIM)}
    api = FakeApi(
        {
            **paths,
            RAY_CLUSTER.path("training"): {"items": [cluster(), foreign]},
            CONFIG_MAP.path("training"): {"items": [thing("first-job", data={"stop": "1", "job.yaml": "PLANTED"})]},
            SECRET.path("training"): {"items": [thing("s", data={"key": "PLANTED"})]},
            BUDGET.path("training"): FORBIDDEN,
        }
    )
    seen = collect(api, "training")
    assert [each["metadata"]["name"] for each in seen.clusters] == ["first-abc"]
    assert seen.unseen == ("poddisruptionbudgets",) and "PLANTED" not in str(seen)
    assert [kind for kind, _ in seen.small] == [CONFIG_MAP, SECRET] and seen.asked_to_stop == {"first"}
    del api.objects[BUDGET.path("training")]  # a cluster without the kind has none of them
    assert collect(api, "training").unseen == ()
