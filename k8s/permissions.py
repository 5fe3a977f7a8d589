"""What a run needs to be allowed in its namespace: asked of the API server before anything is created, granted by `k8s bootstrap`.

One list for both, so that what is asked for and what is granted cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

from zerofleet.cluster.config import UserError
from zerofleet.k8s.api import Api, ApiError
from zerofleet.k8s.paths import (
    BUDGET,
    CLAIM,
    CONFIG_MAP,
    EVENT,
    LOCAL_QUEUE,
    NAMESPACE,
    POD,
    POD_GROUP,
    RAY_CLUSTER,
    RAY_JOB,
    SERVICE_ACCOUNT,
    WORKLOAD,
    Kind,
)
from zerofleet.k8s.profile import Profile

_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_WATCH = ("get", "list", "watch")

Right: TypeAlias = tuple[Kind, str, tuple[str, ...]]
"""Kind, subresource and verbs."""


def needed(profile: Profile) -> Iterator[Right]:
    """Kind, subresource and verbs, of whoever submits, watches and stops."""
    yield RAY_JOB, "", (*_WATCH, "create", "delete")
    yield RAY_CLUSTER, "", ("delete",)
    yield CONFIG_MAP, "", ("get", "create", "patch", "delete")
    yield POD, "", (*_WATCH, "patch")
    yield POD, "log", ("get",)
    yield EVENT, "", ("list", "watch")
    made = ("create", "patch") if profile.limits.disruption_budget else ()
    yield BUDGET, "", ("get", *made, "delete")  # what deletes a run does not know by which profile it was made
    if profile.queue.kind == "kueue":
        yield WORKLOAD, "", _WATCH


def helpful(profile: Profile) -> Iterator[Right]:
    """What `doctor` reads, and whoever explains why a run waits: without it they say less, and nothing fails."""
    yield NAMESPACE, "", ("get",)
    yield SERVICE_ACCOUNT, "", ("get",)
    yield CLAIM, "", _WATCH
    yield RAY_CLUSTER, "", ("list",)
    yield CONFIG_MAP, "", ("list",)
    yield BUDGET, "", ("list",)
    if profile.queue.kind == "kueue":
        yield LOCAL_QUEUE, "", ("get",)
    if profile.queue.kind == "volcano":
        yield POD_GROUP, "", _WATCH


def role_rules(rights: Iterable[Right]) -> list[dict[str, Any]]:
    """As a Role spells them: one rule for each kind and subresource, in the order in which they come first."""
    verbs: dict[tuple[str, str], list[str]] = {}
    for kind, sub, names in rights:
        resource = f"{kind.plural}/{sub}" if sub else kind.plural
        verbs.setdefault((kind.group, resource), []).extend(names)
    return [
        {"apiGroups": [group], "resources": [resource], "verbs": list(dict.fromkeys(names))}
        for (group, resource), names in verbs.items()
    ]


def missing_rights(api: Api, profile: Profile) -> list[Right]:
    """Those of `needed` that whoever asks has not."""
    return [
        (kind, sub, lacking)
        for kind, sub, verbs in needed(profile)
        if (lacking := _refused(api, profile, kind, sub, verbs))
    ]


def spelled(rights: Iterable[Right]) -> str:
    """As the rules of a Role, a line each."""
    return "".join(
        f'\n  - {{apiGroups: ["{kind.group}"], resources: [{kind.plural}{f"/{sub}" if sub else ""}], verbs: [{", ".join(verbs)}]}}'
        for kind, sub, verbs in rights
    )


def check_permissions(api: Api, profile: Profile) -> None:
    """Raises UserError with everything that is not allowed, as a Role's rules."""
    if missing := missing_rights(api, profile):
        raise UserError(
            f"you may not do in namespace {profile.namespace} what a run needs. Ask the platform team for a Role with these rules, bound "
            f"to you (`zerofleet k8s bootstrap` writes one):{spelled(missing)}"
        )


def _refused(api: Api, profile: Profile, kind: Kind, sub: str, verbs: tuple[str, ...]) -> tuple[str, ...]:
    with ThreadPoolExecutor(len(verbs)) as pool:
        allowed = pool.map(lambda verb: _allowed(api, profile.namespace, kind, sub, verb), verbs)
        return tuple(verb for verb, is_allowed in zip(verbs, allowed, strict=True) if not is_allowed)


def _allowed(api: Api, namespace: str, kind: Kind, sub: str, verb: str) -> bool:
    attributes = {
        "namespace": namespace,
        "verb": verb,
        "group": kind.group,
        "resource": kind.plural,
        "subresource": sub,
    }
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {key: value for key, value in attributes.items() if value}},
    }
    try:
        return bool(api.create(_REVIEWS, review)["status"]["allowed"])
    except ApiError as error:
        if error.status == 403:
            return True  # the question itself is forbidden: then the create says what is not allowed
        raise
