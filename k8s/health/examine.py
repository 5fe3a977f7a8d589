"""All checks of a cluster, in the order in which one makes the next worth asking."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from zerofleet.cluster.config import Check, ClusterConfig
from zerofleet.k8s.api import Api, ApiError
from zerofleet.k8s.health.namespace import account, namespace, pull_secrets, secrets, storage
from zerofleet.k8s.health.pools import pools
from zerofleet.k8s.health.queue import classes, operator, queue
from zerofleet.k8s.health.server import answers, job, kinds, rights
from zerofleet.k8s.profile import Profile

Look = Callable[[Api, Profile], Iterator[Check]]

INSIDE: dict[str, Look] = {
    "rights": rights,
    "account": account,
    "image": pull_secrets,
    "secrets": secrets,
    "storage": storage,
    "queue": queue,
}
"""By the name of their lines: what needs the namespace."""
OUTSIDE: dict[str, Look] = {"operator": operator, "classes": classes}
"""What belongs to the cluster, as its nodes do. Whoever submits may often not see it."""


def examine(
    api: Api, profile: Profile | None, ray_job: dict[str, Any] | None, recipe: ClusterConfig | None = None
) -> Iterator[Check]:
    """`ray_job`: one that the profile gives, to be tried; `recipe`: the cluster of the recipe that it is of. Without a profile only what every
    run needs is looked at."""
    try:
        yield answers(api)
    except ApiError as error:
        yield Check("fail", "cluster", f"{error}. See whether you are in its network and logged in (kubectl version)")
        return
    if profile is None:
        yield from kinds(api, None)
        yield Check("warn", "profile", "none is given, and nothing that depends on it was looked at: --profile FILE")
        return
    yield from _looked("kinds", kinds, api, profile)
    there = [*_looked("namespace", namespace, api, profile)]
    yield from there
    if not any(check.level == "fail" and check.name == "namespace" for check in there):
        for name, look in INSIDE.items():
            yield from _looked(name, look, api, profile)
        if ray_job is not None:
            yield from _looked("job", partial(job, ray_job=ray_job), api, profile)
    outside: dict[str, Look] = {**OUTSIDE, "nodes": partial(pools, recipe=recipe)}
    for name, look in outside.items():
        yield from _looked(name, look, api, profile)


def _looked(name: str, look: Look, api: Api, profile: Profile) -> Iterator[Check]:
    """What may not be seen, or is not known to this server, is said and does not end the examination."""
    try:
        yield from look(api, profile)
    except ApiError as error:
        if error.status == 403:
            yield Check("warn", name, f"you may not look ({error}): ask somebody who may to run this")
        elif error.status == 404:
            yield Check("warn", name, f"this cluster does not know them ({error}): see what is said about its kinds")
        else:
            yield Check("fail", name, f"the API server does not answer as it should ({error}): try again")
