"""Why a run does not run: each cause, as its controller says it, becomes one sentence with the remedy."""

from __future__ import annotations

import pytest

from tests.k8s.objects import condition, event, observed, pod, ray_job, running, workload
from zerofleet.k8s.pending import why_pending

KUEUE = {"kueue.x-k8s.io/queue-name": "research"}
VOLCANO = {"volcano.sh/queue-name": "research"}


def reason(job, **objects):
    found = why_pending(observed(job, **objects))
    assert found is not None
    return found.kind, found.sentence


def test_a_job_that_was_handed_over_is_not_pending_unless_a_pod_of_its_cluster_is_missing():
    job = ray_job(running("Running") | {"jobStatus": "RUNNING"})
    assert why_pending(observed(job, pods=[pod(phase="Running")])) is None
    assert why_pending(observed(None)) is None
    kind, sentence = reason(
        job, pods=[pod(unschedulable="0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", gpus=8)]
    )
    assert kind == "not enough GPUs" and "asks for 8 nvidia.com/gpu" in sentence
    submitters = [pod(component="submitter", name="first-xyz")]
    assert why_pending(observed(job, pods=[pod(phase="Running"), *submitters])) is None


def test_a_submitter_that_fits_no_node_is_explained_though_kuberay_says_that_the_job_runs():
    job, head = ray_job(running("Running")), pod("head", component="head", phase="Running")
    waits = pod("first-xyz", "submitter", unschedulable="0/3 nodes are available: 3 Insufficient cpu.")
    kind, sentence = reason(job, pods=[head, waits])
    assert kind == "not enough of a resource" and "pod first-xyz asks for 4 of cpu" in sentence
    has_ray_job = ray_job(running("Running") | {"jobStatus": "RUNNING"})
    assert reason(has_ray_job, pods=[head, pod("failed", "submitter", phase="Failed"), waits])[0] == kind
    assert reason(job, pods=[head])[1] == "1 of 1 pods run; the job is being handed to Ray"
    assert why_pending(observed(job, pods=[head, pod("first-xyz", "submitter", phase="Running")])) is None


def test_an_operator_that_says_nothing_is_named_after_a_while():
    assert why_pending(observed(ray_job(age_s=10))) is None
    kind, sentence = reason(ray_job(age_s=31))
    assert kind == "no operator" and "for 31 s" in sentence and "namespace training" in sentence
    assert why_pending(observed(ray_job(age_s=31, suspend=True))) is None  # a queue has to let it go first


def test_what_does_not_go_away_by_itself_comes_first():
    pods = [
        pod("a", unschedulable="0/2 nodes are available: 2 Insufficient cpu."),
        pod("b", node="node-1", waiting={"reason": "ImagePullBackOff", "message": "Back-off pulling image"}),
    ]
    kind, sentence = reason(ray_job(running()), pods=pods)
    assert (
        kind == "image pull error"
        and "pod b cannot pull the image registry/image:1" in sentence
        and "images.image" in sentence
    )


def test_pods_that_start_are_counted():
    pods = [pod("a", phase="Running"), pod("b", node="node-1"), pod("s", component="submitter")]
    kind, sentence = reason(ray_job(running()), pods=pods)
    assert (kind, sentence) == ("starting", "1 of 2 pods run; the others are being started")
    assert reason(ray_job(running()), pods=pods[:1])[1] == "1 of 1 pods run; the job is being handed to Ray"


def crashing(name: str, component: str = "worker") -> dict:
    """A pod whose container ends again and again: its phase stays Running."""
    made = pod(name, component, phase="Running", node="node-1", waiting={"reason": "CrashLoopBackOff"})
    (container,) = made["status"]["containerStatuses"]
    container |= {"ready": False, "restartCount": 4, "lastState": {"terminated": {"exitCode": 137}}}
    return made


@pytest.mark.parametrize("status", [running(), running("Running") | {"jobStatus": "RUNNING"}])
def test_a_container_that_ends_again_and_again_is_seen_though_its_pods_phase_is_running(status):
    stale = event("Unable to attach or mount volumes", "w", "Pod", "FailedMount")
    head = pod("h", "head", phase="Running")
    kind, sentence = reason(ray_job(status), pods=[head, crashing("w")], events=[stale])
    assert kind == "container fails" and "ray-worker of pod w ends with exit code 137" in sentence
    assert "(4 restarts)" in sentence
    assert reason(ray_job(status), pods=[crashing("h", "head"), pod("w", phase="Running")])[0] == kind


def test_pods_are_counted_by_their_containers():
    up, probed = pod("a", phase="Running"), pod("b", phase="Running")
    up["status"]["containerStatuses"] = [{"name": "ray-worker", "ready": True, "state": {"running": {}}}]
    probed["status"]["containerStatuses"] = [{"name": "ray-worker", "ready": False, "state": {"running": {}}}]
    assert reason(ray_job(running()), pods=[up, probed])[1] == "1 of 2 pods run; the others are being started"


def test_a_retry_says_what_failed():
    status = running("Retrying") | {"failed": 1, "reason": "AppFailed", "message": "the driver\nended"}
    kind, sentence = reason(ray_job(status, backoffLimit=2))
    assert kind == "starting" and "1 of 3 tries" in sentence and "AppFailed): the driver ended" in sentence


def test_the_newest_refusal_counts_and_those_of_others_do_not():
    denied = 'pods "x" is forbidden: admission webhook "policy.example.com" denied the request: no cost centre'
    events = [
        event("exceeded quota: compute, requested: nvidia.com/gpu=8", about="first-abcde", kind="RayCluster", age_s=5),
        event(denied, about="first-abcde", kind="RayCluster", age_s=2),
        event("exceeded quota: of another", about="second", age_s=0),
        event("exceeded quota: of an earlier run of this name", age_s=100),
    ]
    kind, sentence = reason(ray_job(running()), events=events)
    assert kind == "webhook refusal" and "policy.example.com" in sentence and "no cost centre" in sentence


def test_kueues_stale_warning_is_ignored():
    stale = event("exceeded quota: not really", reason="ErrWorkloadCompose")
    waits = workload(
        condition(
            "QuotaReserved", "False", "Pending", "couldn't assign flavors to pod set workers: insufficient unused quota"
        )
    )
    kind, _ = reason(ray_job(labels=KUEUE, suspend=True), events=[stale], workloads=[waits])
    assert kind == "no quota"


def test_another_runs_workload_is_not_this_ones():
    other = workload(condition("QuotaReserved", "False", "Inadmissible", "ClusterQueue research is inactive"))
    other["metadata"]["ownerReferences"] = [{"uid": "u2"}]
    kind, _ = reason(ray_job(labels=KUEUE, suspend=True), workloads=[other])
    assert kind == "queued"


@pytest.mark.parametrize(
    "field", [{"series": {"lastObservedTime": "2027-01-15T08:00:00Z"}}, {"eventTime": "2027-01-15T08:00:00.123456Z"}]
)
def test_events_of_both_kinds_have_a_time(field):
    quota = event("exceeded quota: compute") | {"lastTimestamp": None} | field
    assert reason(ray_job(running()), events=[quota])[0] == "no quota"
