"""The scheduler's words, of old and new versions."""

from __future__ import annotations

import pytest

from tests.k8s.objects import pod
from zerofleet.k8s.reasons.scheduling import scheduling_reason

TAINTED = "0/5 nodes are available: 2 Insufficient nvidia.com/gpu, 3 node(s) had untolerated taint {nvidia.com/gpu: present}. preemption: 0/5 nodes are available"
OLD_TAINT = "0/1 nodes are available: 1 node(s) had taint {nvidia.com/gpu: present}, that the pod didn't tolerate."
FULL = "0/4 nodes are available: 1 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }, 3 Insufficient nvidia.com/gpu."
OTHERS = "0/7 nodes are available: 3 Insufficient nvidia.com/gpu, 4 node(s) had untolerated taint {team: vision}."
BOTH = "0/7 nodes are available: 3 node(s) had untolerated taint {nvidia.com/gpu: present}, 4 node(s) had untolerated taint {team: vision}."
ONLY_OTHERS = "0/4 nodes are available: 4 node(s) had untolerated taint {team: vision}."
NOT_READY = "0/2 nodes are available: 2 node(s) had untolerated taint {node.kubernetes.io/not-ready: }."
LABELS = "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."
SOME_LABELS = "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't match Pod's node affinity/selector."
APART = "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules."
MEMORY = "0/2 nodes are available: 2 Insufficient memory."
NO_LOCAL_ROOM = "0/3 nodes are available: 3 node(s) did not have enough free storage."
UNBOUND = "0/3 nodes are available: 3 pod has unbound immediate PersistentVolumeClaims."
NO_CLAIM = '0/3 nodes are available: 3 persistentvolumeclaim "zerofleet" not found.'
ZONE = "0/3 nodes are available: 3 node(s) had volume node affinity conflict."
ONE_ZONE = "0/9 nodes are available: 1 node(s) had volume node affinity conflict, 8 Insufficient nvidia.com/gpu."
MOST_ZONES = "0/9 nodes are available: 1 Insufficient cpu, 8 node(s) had volume node affinity conflict."
TAINTS = "0/8 nodes are available: 8 node(s) had untolerated taint(s)."
MOST_TAINTS = "0/9 nodes are available: 1 Insufficient nvidia.com/gpu, 8 node(s) had untolerated taint(s)."
FEW_TAINTS = "0/9 nodes are available: 1 node(s) had untolerated taint(s), 8 Insufficient nvidia.com/gpu."
AS_MANY = "0/2 nodes are available: 1 node(s) had untolerated taint(s), 1 Insufficient cpu."
TAINTS_AND_LABELS = (
    "0/9 nodes are available: 3 node(s) had untolerated taint(s), 6 node(s) didn't match Pod's node affinity/selector."
)


@pytest.mark.parametrize(
    ("message", "kind", "says"),
    [
        (
            TAINTED,
            "untolerated taint",
            "3 of 5 nodes have the taint nvidia.com/gpu=present, which it does not tolerate. Add {key: nvidia.com/gpu}",
        ),
        (OLD_TAINT, "untolerated taint", "1 of 1 nodes have the taint nvidia.com/gpu=present"),
        (BOTH, "untolerated taint", "3 of 7 nodes have the taint nvidia.com/gpu=present"),
        (ONLY_OTHERS, "untolerated taint", "4 of 4 nodes have the taint team=vision"),
        (FULL, "not enough GPUs", "asks for 8 nvidia.com/gpu, and 3 of 4 nodes have fewer free"),
        (OTHERS, "not enough GPUs", "3 of 7 nodes have fewer free"),
        (NOT_READY, "no matching node", "2 of 2 nodes have the taint node.kubernetes.io/not-ready, so they are broken"),
        (LABELS, "no matching node", "3 of 3 nodes lack the labels that it selects. Correct node_selector"),
        (SOME_LABELS, "not enough of a resource", "asks for 4 of cpu, and 1 of 3 nodes have less free"),
        (MEMORY, "not enough of a resource", "asks for 16Gi of memory"),
        (APART, "not enough of a resource", "holds no other worker of the run"),
        (UNBOUND, "unbound volume", "PersistentVolumeClaim 'zerofleet' (Pending), which has no volume"),
        (
            NO_CLAIM,
            "unbound volume",
            "'zerofleet', which is not there: create it in this namespace, or correct storage.claim",
        ),
        (ZONE, "no matching node", "3 of 3 nodes cannot reach the volume of the PersistentVolumeClaim 'zerofleet'"),
        (ONE_ZONE, "not enough GPUs", "8 of 9 nodes have fewer free"),
        (MOST_ZONES, "no matching node", "8 of 9 nodes cannot reach the volume"),
        (TAINTS, "untolerated taint", "8 of 8 nodes have taints that the pods do not tolerate. `zerofleet doctor"),
        (MOST_TAINTS, "untolerated taint", "8 of 9 nodes have taints"),
        (FEW_TAINTS, "not enough GPUs", "8 of 9 nodes have fewer free"),
        (AS_MANY, "not enough of a resource", "1 of 2 nodes have less free"),
        (TAINTS_AND_LABELS, "no matching node", "6 of 9 nodes lack the labels"),
        ("something new", "no matching node", "something new"),
    ],
)
def test_each_cause_is_named_with_its_numbers_and_remedy(message, kind, says):
    claim = {"metadata": {"name": "zerofleet"}, "status": {"phase": "Pending"}}
    found = scheduling_reason(pod(unschedulable=message, gpus=8, claim="zerofleet"), (claim,))
    assert found is not None
    assert (found.kind, says in found.sentence) == (kind, True), found.sentence
    assert "pod first-abcde-workers-0" in found.sentence


def test_a_claim_that_is_bound_by_now_is_not_told():
    waiting = pod(unschedulable=UNBOUND, claim="zerofleet")
    bound = {"metadata": {"name": "zerofleet"}, "status": {"phase": "Bound"}}
    found = scheduling_reason(waiting, (bound,))
    assert found is not None and found.kind == "no matching node" and "'zerofleet'" not in found.sentence
    unseen = scheduling_reason(waiting, ())  # claims may not be read
    assert unseen is not None and unseen.kind == "unbound volume"


@pytest.mark.parametrize("message", [UNBOUND, NO_LOCAL_ROOM])
def test_a_volume_that_the_pod_brings_itself_is_named(message):
    waiting = pod(unschedulable=message, claim="zerofleet")
    waiting["spec"]["volumes"].append({"name": "scratch", "ephemeral": {"volumeClaimTemplate": {}}})
    bound = {"metadata": {"name": "zerofleet"}, "status": {"phase": "Bound"}}
    pending = {"metadata": {"name": "first-abcde-workers-0-scratch"}, "status": {"phase": "Pending"}}
    found = scheduling_reason(waiting, (bound, pending))
    assert found is not None and found.kind == "unbound volume"
    assert "PersistentVolumeClaim 'first-abcde-workers-0-scratch' (Pending), which has no volume" in found.sentence


def test_a_pod_that_the_scheduler_has_not_looked_at_or_has_placed_has_no_reason():
    assert scheduling_reason(pod(), ()) is None
    placed = pod(node="node-1")
    placed["status"]["conditions"] = [{"type": "PodScheduled", "status": "True"}]
    assert scheduling_reason(placed, ()) is None
