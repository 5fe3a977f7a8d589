"""What keeps a container of a placed pod from starting."""

from __future__ import annotations

import pytest

from tests.k8s.objects import event, pod
from zerofleet.k8s.reasons.containers import container_reasons


@pytest.mark.parametrize(
    ("waiting", "kind", "says"),
    [
        (
            {"reason": "ErrImagePull", "message": "401 Unauthorized"},
            "image pull error",
            "(ErrImagePull: 401 Unauthorized)",
        ),
        ({"reason": "InvalidImageName"}, "image pull error", "(InvalidImageName)"),
        (
            {"reason": "CreateContainerConfigError", "message": 'secret "wandb" not found'},
            "missing object",
            "the secret 'wandb', which is not there",
        ),
        (
            {"reason": "CreateContainerConfigError", "message": "couldn't find key a in Secret b"},
            "missing object",
            "couldn't find key a",
        ),
        ({"reason": "CrashLoopBackOff"}, "container fails", "exit code ? again and again"),
    ],
)
def test_a_waiting_container(waiting, kind, says):
    (found,) = container_reasons(pod(node="node-1", waiting=waiting), [])
    assert found.kind == kind and says in found.sentence


def test_a_container_that_is_being_created_is_no_reason():
    assert list(container_reasons(pod(node="node-1", waiting={"reason": "ContainerCreating"}), [])) == []


def test_the_newest_failed_mount_counts_until_the_container_runs():
    about = "first-abcde-workers-0"
    events = [
        event(
            'MountVolume.SetUp failed for volume "job" : configmap "first-job" not found', about, "Pod", "FailedMount"
        ),
        event("Unable to attach", about, "Pod", "FailedMount", age_s=5),
    ]
    (found,) = container_reasons(pod(node="node-1"), events)
    assert found.kind == "missing object" and "the configmap 'first-job'" in found.sentence
    (found,) = container_reasons(pod(node="node-1"), events[1:])
    assert found.kind == "volume not mounted" and "Unable to attach" in found.sentence
    started = pod(node="node-1", phase="Running")
    started["status"]["containerStatuses"] = [{"name": "ray-worker", "state": {"running": {}}}]
    assert list(container_reasons(started, events)) == []
