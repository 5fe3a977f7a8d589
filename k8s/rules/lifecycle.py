"""Queue, deletion, retries, deadlines and grace: what KubeRay 1.7, Kueue 0.19 and Volcano 1.15 accept of each other."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from zerofleet.cluster.config import Finding
from zerofleet.k8s.profile import LifecycleConfig, Profile, QueueConfig
from zerofleet.k8s.rules.naming import error, warning
from zerofleet.k8s.workload import RAY_END_S, Workload, grace_s, least_nodes, needed_grace_s, save_s

AUTOSCALER_GRACE_S = 600
"""What cluster-autoscaler waits for pods of a node that it removes, unless told otherwise."""
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?")
_RULE_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")


def lifecycle(profile: Profile, workload: Workload) -> Iterator[Finding]:
    yield from queue_findings(profile)
    yield from _deletion(profile.lifecycle)
    yield from _autoscaling(profile, workload)
    yield from _deadlines(profile)
    yield from _grace(profile, workload)


def queue_findings(profile: Profile) -> Iterator[Finding]:
    """What of the queue needs no workload to be judged."""
    queue = profile.queue
    if queue.kind == "none":
        for field in ("name", "priority_class", "max_execution_s"):
            if getattr(queue, field) is not None:
                yield error(
                    f"queue.{field}",
                    "it has no effect with queue.kind=none: set queue.kind to kueue or volcano, or remove it",
                )
    elif not queue.name:
        yield error("queue.name", f"{queue.kind} takes a job only by the name of its queue: set it")
    elif not _LABEL.fullmatch(queue.name):
        yield error(
            "queue.name", f"{queue.name!r} is no name of an object (lower-case letters, digits, `-`): correct it"
        )
    if queue.kind == "kueue":
        yield from _kueue(profile.lifecycle)
    if queue.kind == "volcano" and queue.max_execution_s is not None:
        yield error("queue.max_execution_s", "only Kueue reads it: use lifecycle.active_deadline_s with Volcano")
    if queue.kind != "kueue" and queue.cluster_queue is not None:
        yield error("queue.cluster_queue", "only Kueue has ClusterQueues: remove it, or set queue.kind to kueue")
    yield from _topology(queue)


def _kueue(life: LifecycleConfig) -> Iterator[Finding]:
    """What Kueue's webhook wants of a RayJob."""
    if life.deletion_rules:
        yield error(
            "lifecycle.deletion_rules",
            "Kueue's webhook wants shutdownAfterJobFinishes, which KubeRay refuses beside deletion rules: remove them and use "
            "lifecycle.ttl_s",
        )
    elif not life.shutdown_after_finish:
        yield error(
            "lifecycle.shutdown_after_finish",
            "Kueue's webhook refuses a RayJob whose pods stay, since their quota would never be given back: set true",
        )


def _topology(queue: QueueConfig) -> Iterator[Finding]:
    if queue.topology is None:
        return
    level = queue.topology.level
    if queue.kind == "volcano" and not level.isdigit():
        yield error(
            "queue.topology.level",
            f"it is {level!r}; Volcano knows tiers by number: give the highest that may be crossed, such as 1",
        )
    if queue.kind != "volcano" and level.isdigit():
        yield error(
            "queue.topology.level",
            f"it is {level}, a tier of Volcano's; here a domain is known by a label of nodes: give one, such as topology.kubernetes.io/zone",
        )


def _deletion(life: LifecycleConfig) -> Iterator[Finding]:
    rules, where = life.deletion_rules, "lifecycle.deletion_rules"
    if not rules:
        if not life.shutdown_after_finish:
            yield warning(
                "lifecycle.shutdown_after_finish",
                "it is false: pods and their GPUs stay after the end until somebody deletes the job. Set true, or use deletion_rules",
            )
        if life.ttl_s and not life.shutdown_after_finish and "ttl_s" in life.model_fields_set:
            yield error(
                "lifecycle.ttl_s",
                "KubeRay refuses a ttl without shutdown_after_finish: set that to true, or ttl_s to 0",
            )
        return
    for field in ("shutdown_after_finish", "ttl_s"):
        if getattr(life, field) and field in life.model_fields_set:
            yield error(f"lifecycle.{field}", "KubeRay refuses it beside deletion rules: remove one of the two")
    seen = set()
    for number, rule in enumerate(rules):
        if (rule.job_status is not None) == rule.deployment_failed:
            yield error(
                f"{where}.{number}",
                "KubeRay wants exactly one condition: give job_status or deployment_failed, not both",
            )
        key = (rule.policy, rule.job_status, rule.deployment_failed)
        if key in seen:
            yield error(
                f"{where}.{number}",
                f"{rule.policy} is there already for this condition, and KubeRay wants each once: remove one",
            )
        seen.add(key)
        if rule.policy == "DeleteWorkers" and life.autoscaling:
            yield error(f"{where}.{number}", "KubeRay refuses DeleteWorkers with autoscaling: use DeleteCluster")
    yield from _rule_order(life)


def _rule_order(life: LifecycleConfig) -> Iterator[Finding]:
    for condition in sorted({(rule.job_status or "", rule.deployment_failed) for rule in life.deletion_rules}):
        ttl_s = {
            rule.policy: rule.ttl_s
            for rule in life.deletion_rules
            if ((rule.job_status or ""), rule.deployment_failed) == condition
        }
        present = [policy for policy in _RULE_ORDER if policy in ttl_s]
        for first, then in itertools.pairwise(present):
            if ttl_s[first] > ttl_s[then]:
                yield error(
                    "lifecycle.deletion_rules",
                    f"{first} after {ttl_s[first]} s comes later than {then} after {ttl_s[then]} s, and KubeRay wants workers, cluster and "
                    f"job in this order: lower the ttl_s of {first}",
                )


def _autoscaling(profile: Profile, workload: Workload) -> Iterator[Finding]:
    if not profile.lifecycle.autoscaling:
        return
    cluster, where = workload.cluster, "lifecycle.autoscaling"
    if least_nodes(cluster) == cluster.nodes:
        yield error(
            where,
            f"the job has {cluster.nodes} nodes at least and at most: there is nothing to scale. Set it to false, or cluster.min_nodes lower",
        )
    if profile.queue.kind == "kueue":
        yield error(
            where,
            "Kueue refuses Ray's autoscaler unless the alpha gate ElasticJobsViaWorkloadSlices is on, and evicts the head in loops "
            "(kueue #4406): set it to false; cluster.min_nodes still lets the run go on with fewer nodes",
        )
    if profile.queue.kind == "volcano":
        yield error(
            where,
            "Volcano's gang is made of all pods at once and does not follow the autoscaler (kuberay #5002): set it to false",
        )


def _deadlines(profile: Profile) -> Iterator[Finding]:
    life = profile.lifecycle
    if life.active_deadline_s and life.pre_running_deadline_s and life.active_deadline_s <= life.pre_running_deadline_s:
        yield error(
            "lifecycle.active_deadline_s",
            f"it is {life.active_deadline_s} and the job may take {life.pre_running_deadline_s} s to begin: it could be ended before its "
            "first step. Raise it, or lower lifecycle.pre_running_deadline_s",
        )
    if profile.queue.kind == "volcano" and life.pre_running_deadline_s:
        yield warning(
            "lifecycle.pre_running_deadline_s",
            f"under Volcano the time in the queue counts: a job that waits longer than {life.pre_running_deadline_s} s fails. Raise it, or set null",
        )
    if not life.pre_running_deadline_s and profile.queue.kind != "volcano":
        yield warning(
            "lifecycle.pre_running_deadline_s",
            "without it a job whose pods never start (image, quota, taint) stays Initializing for ever and holds its quota: set 1800",
        )


def _grace(profile: Profile, workload: Workload) -> Iterator[Finding]:
    grace, needed, where = grace_s(profile, workload), needed_grace_s(profile, workload), "limits.termination_grace_s"
    parts = (
        f"{profile.limits.drain_s} s for the step and the commit, {save_s(profile, workload)} s for "
        f"{workload.snapshot_bytes / 1e9:.1f} GB at {profile.storage.write_mb_per_s:g} MB/s, {RAY_END_S} s for Ray"
    )
    if grace < needed:
        yield error(
            where,
            f"it is {grace} s and the last save takes {needed} s ({parts}): a pod would be killed in the middle of it. Use `auto`",
        )
    if grace > AUTOSCALER_GRACE_S:
        yield warning(
            where,
            f"it is {grace} s ({parts}), and cluster-autoscaler kills pods {AUTOSCALER_GRACE_S} s after its notice unless "
            "--max-graceful-termination-sec says more; spot instances give less still. Use more nodes or faster storage; snapshots of "
            "other nodes and the newest checkpoint remain",
        )
