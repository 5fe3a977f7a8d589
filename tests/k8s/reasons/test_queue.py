"""Kueue's Workload and Volcano's PodGroup."""

from __future__ import annotations

import pytest

from tests.k8s.objects import condition, ray_job, workload
from zerofleet.k8s.reasons.queue import queue_reasons

KUEUE = {"kueue.x-k8s.io/queue-name": "research"}
VOLCANO = {"volcano.sh/queue-name": "research"}
SHORT = "couldn't assign flavors to pod set workers: insufficient unused quota for nvidia.com/gpu in flavor h100, 8 more needed"

ASSIGN = "couldn't assign flavors to pod set"
TAINT = "untolerated taint {nvidia.com/gpu present NoSchedule <nil>} in flavor h100"
SHORT_ALONE = SHORT.partition(": ")[2]
LABELS = "flavor cpu doesn't match node affinity"
NEVER = (
    "insufficient quota for nvidia.com/gpu in flavor h100, previously considered podsets requests (0) + current podset request (64) > "
    "maximum capacity (32)"
)


def pending(reason: str, message: str):
    return condition("QuotaReserved", "False", reason, message)


@pytest.mark.parametrize(
    ("made", "kind", "says"),
    [
        (workload(pending("Pending", SHORT)), "no quota", f"{SHORT}. Wait until"),
        (
            workload(pending("Inadmissible", "ClusterQueue research is inactive")),
            "queue stopped",
            "ClusterQueue research is inactive",
        ),
        (
            workload(pending("Inadmissible", "LocalQueue research doesn't exist")),
            "queue stopped",
            "set another queue.name",
        ),
        (
            workload(condition("Evicted", "True", "ClusterQueueStopped", "The ClusterQueue is stopped")),
            "queue stopped",
            "is stopped",
        ),
        (
            workload(condition("Evicted", "True", "Preempted"), pending("Pending", SHORT)),
            "no quota",
            "(it was preempted)",
        ),
        (
            workload(condition("Evicted", "True", "Deactivated", "by kim"), active=False),
            "queue stopped",
            "deactivated the run's Workload in queue 'research' (by kim)",
        ),
        (workload(pending("Pending", f"{ASSIGN} workers: {TAINT}")), "untolerated taint", "in flavor h100. Add it to"),
        (workload(pending("Pending", f"{ASSIGN} workers: {LABELS}")), "no matching node", "Correct node_selector"),
        (workload(pending("Pending", f"{ASSIGN} workers: {NEVER}")), "no quota", "never fits the run, however long"),
        (
            workload(pending("Pending", f"{ASSIGN} workers: {LABELS}, {SHORT_ALONE}")),
            "no quota",
            "has no quota for the run now",
        ),
        (
            workload(pending("Pending", f"{ASSIGN} head: {TAINT}; {ASSIGN} workers: {SHORT}")),
            "untolerated taint",
            "ResourceFlavor",
        ),
        (
            workload(pending("Pending", "Exceeded the PodsReady timeout training/rayjob-first-1")),
            "queued",
            "took the quota back, since its pods were not ready",
        ),
        (workload(pending("Suspended", "ClusterQueue research is stopped")), "queue stopped", "set another queue.name"),
        (
            workload(pending("Misconfigured", "ClusterQueue research is inactive")),
            "queue stopped",
            "set another queue.name",
        ),
        (
            workload(
                condition("Evicted", "True", "DeactivatedDueToMaximumExecutionTimeExceeded", "exceeding the maximum"),
                active=False,
            ),
            "queue stopped",
            "time in queue 'research' is over (exceeding the maximum): go on with `zerofleet resume`",
        ),
        (workload(condition("QuotaReserved", "True")), "queued", "waits for its admission checks"),
        (workload(), "queued", "which has not looked at it yet"),
    ],
)
def test_kueue(made, kind, says):
    (found,) = queue_reasons(ray_job(labels=KUEUE, suspend=True), [made], [])
    assert (found.kind, says in found.sentence) == (kind, True), found.sentence


def test_an_admitted_workload_is_no_reason_and_an_absent_one_is():
    admitted = workload(condition("QuotaReserved", "True"), condition("Admitted", "True"))
    assert list(queue_reasons(ray_job(labels=KUEUE), [admitted], [])) == []
    (found,) = queue_reasons(ray_job(labels=KUEUE, suspend=True), [], [])
    assert found.kind == "queued" and "no Workload" in found.sentence
    assert list(queue_reasons(ray_job(), [workload(pending("Pending", SHORT))], [])) == []


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("3/3 tasks in gang unschedulable: pod group is not ready, 3 Pending, 3 minAvailable", "queued"),
        ("queue resource quota insufficient: insufficient nvidia.com/gpu", "no quota"),
        ("queue research is closed", "queue stopped"),
        ("", "queued"),
    ],
)
def test_volcano(message, kind):
    conditions = [condition("Unschedulable", "True", "NotEnoughResources", message)] if message else []
    group = {
        "metadata": {"name": "ray-first-pg"},
        "spec": {"minMember": 3},
        "status": {"phase": "Pending", "conditions": conditions},
    }
    (found,) = queue_reasons(ray_job(labels=VOLCANO), [], [group])
    assert found.kind == kind and message in found.sentence
    group["status"]["phase"] = "Running"
    assert list(queue_reasons(ray_job(labels=VOLCANO), [], [group])) == []
