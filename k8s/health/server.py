"""The API server, the kinds that it serves, the rights of whoever asks, and whether it would take a run's RayJob."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from zerofleet.cluster.config import Check
from zerofleet.k8s.api import Api, ApiError
from zerofleet.k8s.paths import (
    BUDGET,
    LOCAL_QUEUE,
    POD_GROUP,
    POD_MONITOR,
    RAY_CLUSTER,
    RAY_JOB,
    VOLCANO_QUEUE,
    WORKLOAD,
    Kind,
)
from zerofleet.k8s.permissions import missing_rights, spelled
from zerofleet.k8s.profile import OperatorConfig, Profile

_REMEDIES = {
    "ray.io": "install KubeRay {operator}",
    "kueue.x-k8s.io": "install Kueue 0.19, or set queue.kind",
    "scheduling.volcano.sh": "install Volcano 1.15, or set queue.kind",
    "monitoring.coreos.com": "install the Prometheus operator, or set monitoring.prometheus_operator: false",
    "policy": "Kubernetes 1.21 is the first with it; upgrade, or set limits.disruption_budget: false",
}
_OF_QUEUE: dict[str, list[Kind]] = {
    "kueue": [WORKLOAD, LOCAL_QUEUE],
    "volcano": [POD_GROUP, VOLCANO_QUEUE],
    "none": [],
}
_MOST_FIELDS = 5


def answers(api: Api) -> Check:
    """Raises ApiError when it does not."""
    return Check("ok", "cluster", f"{api.url} answers: Kubernetes {api.get('/version')['gitVersion']}")


def kinds(api: Api, profile: Profile | None) -> Iterator[Check]:
    """What is rendered, or read, at the version at which it is. Without a profile what every run needs."""
    needed: list[Kind] = [RAY_JOB, RAY_CLUSTER]
    if profile and profile.limits.disruption_budget:
        needed.append(BUDGET)
    if profile:
        needed += _OF_QUEUE[profile.queue.kind]
    if profile and profile.monitoring.prometheus_operator:
        needed.append(POD_MONITOR)
    operator, missing = (profile.operator if profile else OperatorConfig()).version, []
    for root, group in itertools.groupby(needed, lambda kind: kind.root):
        served = _served(api, root)
        missing += [kind for kind in group if kind.plural not in served]
    for group_name in dict.fromkeys(kind.group for kind in missing):
        names = ", ".join(f"{kind.plural} ({kind.api_version})" for kind in missing if kind.group == group_name)
        remedy = _REMEDIES[group_name].format(operator=operator)
        yield Check("fail", "kinds", f"the cluster does not serve {names}: {remedy}")
    if not missing:
        shown = ", ".join(dict.fromkeys(kind.api_version for kind in needed))
        yield Check("ok", "kinds", f"{shown}: all {len(needed)} kinds are served")


def _served(api: Api, root: str) -> set[str]:
    """Names of the kinds of one group and version."""
    try:
        return {str(resource["name"]) for resource in api.get(root)["resources"]}
    except ApiError as error:
        if error.status != 404:
            raise
        return set()


def rights(api: Api, profile: Profile) -> Iterator[Check]:
    if missing := missing_rights(api, profile):
        yield Check(
            "fail",
            "rights",
            f"you may not do in namespace {profile.namespace} what a run needs: have yourself bound to the Role that `zerofleet k8s bootstrap` writes. "
            f"Lacking:{spelled(missing)}",
        )
    else:
        yield Check("ok", "rights", f"you may submit, follow, stop and clean up in namespace {profile.namespace}")


def job(api: Api, profile: Profile, ray_job: dict[str, Any]) -> Iterator[Check]:
    """Asks the server, as a dry run, to take a RayJob as it would be submitted: its CRD, its webhooks and its quotas answer.

    An API server drops what the CRD does not know without a word, before 1.27 in any case: so the answer is compared with what was sent.
    """
    query = {"dryRun": "All", "fieldValidation": "Strict"}
    try:
        taken = api.create(RAY_JOB.path(profile.namespace), ray_job, query)
    except ApiError as error:
        if error.status == 404 or error.may_pass:
            raise
        yield Check(
            "fail",
            "job",
            f"the cluster refuses the RayJob of a run (a dry run): {error}. Change the profile, or ask the platform team",
        )
        return
    if lost := [*dropped(ray_job["spec"], taken.get("spec", {}), "spec")]:
        yield Check(
            "fail",
            "job",
            f"the cluster's CRD of RayJobs is older than KubeRay {profile.operator.version} and drops {', '.join(lost[:_MOST_FIELDS])}: upgrade its CRDs",
        )
    else:
        yield Check("ok", "job", "a run's RayJob would be taken as it is (a dry run)")


def dropped(sent: Any, got: Any, path: str) -> Iterator[str]:
    """Paths of what was sent and did not come back."""
    if isinstance(sent, dict):
        for key, value in sent.items():
            if not isinstance(got, dict) or key not in got:
                yield f"{path}.{key}"
            else:
                yield from dropped(value, got[key], f"{path}.{key}")
    elif isinstance(sent, list) and isinstance(got, list):
        for number, (one, other) in enumerate(zip(sent, got, strict=False)):
            yield from dropped(one, other, f"{path}.{number}")
