"""Creates, changes and deletes the objects of a run. Thin: what they look like is rayjob.py's business."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from zerofleet.cluster.config import NotFoundError, UserError
from zerofleet.k8s.api import Api, ApiError
from zerofleet.k8s.names import STOP_FILE, config_map_name, head_selector
from zerofleet.k8s.paths import BUDGET, CONFIG_MAP, KINDS, POD, RAY_CLUSTER, RAY_JOB, Kind

SUBMISSION = "zerofleet/submission"
"""Annotation: which `submit` made an object. Tells a lost answer to an own create from a name that somebody else has."""
ASKED = "zerofleet/asked-at"
"""Annotation of the head's pod. The kubelet brings a ConfigMap's change into a pod within a minute or two, and at once when the pod changes."""
_GONE_TIMEOUT_S = 120.0
_LOOK_S = 0.5

_log = logging.getLogger(__name__)


def create_run(api: Api, documents: Iterable[dict[str, Any]], submission: str) -> dict[str, Any]:
    """Creates everything, the RayJob last, and makes the RayJob its owner. Returns the RayJob.

    The RayJob comes last since its pods take nodes: what a submit that dies before leaves costs nothing, and the next one takes it over.
    An object that gets no owner is told and ends nothing: the run goes on by then. Raises UserError when the name is taken, or the server
    finds a mistake in a document.
    """
    documents = list(documents)
    job = documents[-1]["metadata"]
    is_taken = partial(_exists, api, RAY_JOB.path(job["namespace"], job["name"]))
    made = [_create(api, _marked(document, submission), submission, is_taken) for document in documents]
    ray_job = made[-1]
    metadata = ray_job["metadata"]
    owner = {
        "apiVersion": RAY_JOB.api_version,
        "kind": RAY_JOB.name,
        "name": metadata["name"],
        "uid": metadata["uid"],
    }  # no blockOwnerDeletion: OpenShift then wants the right to update rayjobs/finalizers, and delete_run waits by itself
    for other in made[:-1]:
        path = KINDS[other["kind"]].path(metadata["namespace"], other["metadata"]["name"])
        try:
            api.patch(path, {"metadata": {"ownerReferences": [owner]}})
        except ApiError as error:
            _log.warning(
                "the %s %s cannot be given its owner (%s): the run goes on, and zerofleet deletes it with the run; `kubectl delete rayjob` leaves it",
                other["kind"],
                other["metadata"]["name"],
                error,
            )
    return ray_job


def _marked(document: dict[str, Any], submission: str) -> dict[str, Any]:
    marked = copy.deepcopy(document)
    marked["metadata"].setdefault("annotations", {})[SUBMISSION] = submission
    return marked


def _create(api: Api, document: dict[str, Any], submission: str, is_taken: Callable[[], bool]) -> dict[str, Any]:
    """`is_taken`: whether a RayJob has the run's name."""
    kind, metadata = KINDS[document["kind"]], document["metadata"]
    try:
        return _with_kind(api.create(kind.path(metadata["namespace"]), document), kind)
    except ApiError as error:
        if error.status == 422:
            raise UserError(f"the cluster refuses the {kind.name} {metadata['name']}: {error.message}") from error
        if error.status == 403:
            raise UserError(
                f"the cluster does not let you create the {kind.name} {metadata['name']}: {error.message}"
            ) from error
        if error.status != 409:
            raise
    there = api.get(kind.path(metadata["namespace"], metadata["name"]))
    if there["metadata"].get("annotations", {}).get(SUBMISSION) == submission:
        return _with_kind(there, kind)  # the answer to it was lost
    if (
        kind != RAY_JOB
        and not there["metadata"].get("ownerReferences")
        and SUBMISSION in there["metadata"].get("annotations", {})
        and not is_taken()  # without an owner also where the patch was refused
    ):
        api.delete(kind.path(metadata["namespace"], metadata["name"]))  # left by a submit that died before its RayJob
        return _create(api, document, submission, is_taken)
    raise UserError(
        f"{kind.name} {metadata['name']!r} exists already in namespace {metadata['namespace']}: go on with that run "
        f"(`zerofleet resume {metadata['name']} --backend kuberay --profile PROFILE`), or choose another run.name"
    )


def _with_kind(document: dict[str, Any], kind: Kind) -> dict[str, Any]:
    return {**document, "kind": kind.name}


def find_job(api: Api, namespace: str, name: str) -> dict[str, Any]:
    """The run's RayJob. Raises NotFoundError."""
    try:
        return api.get(RAY_JOB.path(namespace, name))
    except ApiError as error:
        if error.status == 404:
            raise NotFoundError(
                f"no RayJob {name!r} in namespace {namespace}: it is deleted once its run has finished. See `zerofleet list --backend kuberay`, "
                "or give --namespace"
            ) from error
        raise


def ask_to_stop(api: Api, namespace: str, name: str) -> None:
    """Tells the driver, by the ConfigMap that its pod has mounted, to save and end."""
    now = f"{time.time():.3f}"
    api.patch(CONFIG_MAP.path(namespace, config_map_name(name)), {"data": {STOP_FILE: now}})
    for pod in api.get(POD.path(namespace), {"labelSelector": head_selector(name)})["items"]:
        change = {"metadata": {"annotations": {ASKED: now}}}
        try:
            api.patch(POD.path(namespace, pod["metadata"]["name"]), change)
        except ApiError as error:
            if error.status not in (403, 404):  # then it takes the kubelet's time
                raise


def delete_cluster(api: Api, namespace: str, cluster: str) -> None:
    """Ends the pods of a job that is over, which would else stay for `lifecycle.ttl_s`. The RayJob stays."""
    api.delete(RAY_CLUSTER.path(namespace, cluster))


def delete_run(api: Api, namespace: str, name: str) -> None:
    """Deletes everything of a run in the cluster and waits until it is gone. Raises ApiError after two minutes."""
    ray_job = RAY_JOB.path(namespace, name)
    # All three by name: what `kubectl apply` made, or a submit that died early, has no owner to go with.
    small = [CONFIG_MAP.path(namespace, config_map_name(name)), BUDGET.path(namespace, name)]
    paths = [ray_job, *small]
    api.delete(ray_job, {"propagationPolicy": "Foreground"})
    for path in small:
        api.delete(path)
    deadline = time.monotonic() + _GONE_TIMEOUT_S
    while left := [path for path in paths if _exists(api, path)]:
        if time.monotonic() > deadline:
            raise ApiError(0, "Timeout", _still_there(left, ray_job))
        time.sleep(_LOOK_S)


def _still_there(left: list[str], ray_job: str) -> str:
    why = (
        "KubeRay's operator takes its finalizer off once the pods are gone: see whether it runs"
        if ray_job in left
        else "a finalizer holds it (kubectl get -o yaml), or something makes it again, such as GitOps: remove it there"
    )
    named = ", ".join(left)
    return f"{named}: still there {_GONE_TIMEOUT_S:g} s after deletion: {why}"


def _exists(api: Api, path: str) -> bool:
    try:
        api.get(path)
    except ApiError as error:
        if error.status == 404:
            return False
        raise
    return True
