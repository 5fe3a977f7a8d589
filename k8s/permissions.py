"""What a run needs to be allowed in its namespace, asked of the API server before anything is created."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from zerofleet.cluster.config import UserError
from zerofleet.k8s.api import Api, ApiError
from zerofleet.k8s.paths import BUDGET, CONFIG_MAP, EVENT, POD, RAY_CLUSTER, RAY_JOB, WORKLOAD, Kind
from zerofleet.k8s.profile import Profile

_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_WATCH = ("get", "list", "watch")


def needed(profile: Profile) -> Iterator[tuple[Kind, str, tuple[str, ...]]]:
    """Kind, subresource and verbs, of whoever submits, watches and stops."""
    yield RAY_JOB, "", (*_WATCH, "create", "delete")
    yield RAY_CLUSTER, "", ("delete",)
    yield CONFIG_MAP, "", ("get", "create", "patch", "delete")
    yield POD, "", (*_WATCH, "patch")
    yield POD, "log", ("get",)
    yield EVENT, "", ("list", "watch")
    if profile.limits.disruption_budget:
        yield BUDGET, "", ("get", "create", "patch", "delete")
    if profile.queue.kind == "kueue":
        yield WORKLOAD, "", _WATCH


def check_permissions(api: Api, profile: Profile) -> None:
    """Raises UserError with everything that is not allowed, as a Role's rules."""
    missing = [
        (kind, sub, lacking)
        for kind, sub, verbs in needed(profile)
        if (lacking := _refused(api, profile, kind, sub, verbs))
    ]
    if missing:
        rules = "".join(
            f'\n  - {{apiGroups: ["{kind.group}"], resources: [{kind.plural}{f"/{sub}" if sub else ""}], verbs: [{", ".join(verbs)}]}}'
            for kind, sub, verbs in missing
        )
        raise UserError(
            f"you may not do in namespace {profile.namespace} what a run needs. Ask the platform team for a Role with these rules, bound "
            f"to you:{rules}"
        )


def _refused(api: Api, profile: Profile, kind: Kind, sub: str, verbs: tuple[str, ...]) -> list[str]:
    with ThreadPoolExecutor(len(verbs)) as pool:
        allowed = pool.map(lambda verb: _allowed(api, profile.namespace, kind, sub, verb), verbs)
        return [verb for verb, is_allowed in zip(verbs, allowed, strict=True) if not is_allowed]


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
