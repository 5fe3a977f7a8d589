"""Everything that a run's objects say, kept up to date by watches."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

from zerofleet.k8s.api import Api, ApiError
from zerofleet.k8s.job_status import JobStatus, job_status
from zerofleet.k8s.list_watch import ListWatch
from zerofleet.k8s.names import HEAD, SUBMITTER
from zerofleet.k8s.paths import CLAIM, EVENT, POD, POD_GROUP, RAY_JOB, WORKLOAD, Kind

Objects = tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Observed:
    """What the API server holds about one run at one time. Plain objects of the API."""

    job: dict[str, Any] | None
    """The RayJob; none when it is not there."""
    pods: Objects
    events: Objects
    """Warnings of the whole namespace."""
    workloads: Objects
    """Kueue's, of the whole namespace."""
    pod_groups: Objects
    """Volcano's, of the whole namespace."""
    claims: Objects
    now: float
    """Unix seconds."""

    @property
    def status(self) -> JobStatus:
        return job_status(self.job or {})

    @property
    def has_begun(self) -> bool:
        """Whether the job has been handed to Ray, or is about to be by a submitter that runs."""
        return self.status.has_begun or (self.status.deployment == "Running" and bool(self.newest_submitter()))

    def newest_submitter(self) -> str:
        """Name of the pod whose log is the driver's; empty before there is one that has begun."""
        begun = [
            pod["metadata"]
            for pod in self.pods
            if component(pod) == SUBMITTER and pod.get("status", {}).get("phase") in ("Running", "Succeeded", "Failed")
        ]
        return str(max(begun, key=lambda metadata: metadata["creationTimestamp"])["name"]) if begun else ""

    def own_workloads(self) -> list[dict[str, Any]]:
        """Kueue's Workloads of this RayJob, not of one before that had its name."""
        uid = self.job["metadata"].get("uid") if self.job else None
        owners = ((each, each["metadata"].get("ownerReferences", [])) for each in self.workloads)
        return [each for each, owned_by in owners if uid and any(owner.get("uid") == uid for owner in owned_by)]

    @property
    def deactivation(self) -> str | None:
        """Kueue's words when it has taken the run out of its queue for good and the pods are gone, as after `queue.max_execution_s`; else none.

        KubeRay knows no end of such a job: it stays `Suspended` until somebody activates the Workload again."""
        found = self.own_workloads()
        if not found or self.status.deployment not in ("", "Suspended"):
            return None
        newest = max(found, key=lambda each: each["metadata"].get("creationTimestamp", ""))
        if newest.get("spec", {}).get("active") is not False:
            return None
        conditions = newest.get("status", {}).get("conditions") or []
        said = next((c.get("message") for c in conditions if c["type"] == "Evicted"), None)
        return str(said or "it was deactivated")

    @property
    def running_head(self) -> str:
        """Name of the pod of Ray's head; empty when none runs."""
        running = [
            pod for pod in self.pods if component(pod) == HEAD and pod.get("status", {}).get("phase") == "Running"
        ]
        return str(running[-1]["metadata"]["name"]) if running else ""


def component(pod: dict[str, Any]) -> str:
    """head, worker or submitter."""
    return str(pod["metadata"].get("labels", {}).get("app.kubernetes.io/component", ""))


def look(api: Api, namespace: str, name: str) -> Observed:
    """A run as it is now, without watching it. What may not be seen, or is not known to this cluster, counts as absent."""

    def listed(kind: Kind, **selectors: str) -> Objects:
        try:
            return tuple(api.get(kind.path(namespace), selectors)["items"])
        except ApiError as error:
            if error.status not in (403, 404) or kind in (RAY_JOB, POD):
                raise
            return ()

    jobs = listed(RAY_JOB, fieldSelector=f"metadata.name={name}")
    return Observed(
        job=jobs[0] if jobs else None,
        pods=listed(POD, labelSelector=f"app.kubernetes.io/instance={name}"),
        events=listed(EVENT, fieldSelector="type=Warning"),
        workloads=listed(WORKLOAD),
        pod_groups=listed(POD_GROUP),
        claims=listed(CLAIM),
        now=time.time(),
    )


class Observer:
    """Watches a run: `with Observer(...) as observer: observer.wait(1.0); observer.observed()`."""

    def __init__(self, api: Api, namespace: str, name: str) -> None:
        self._changed = threading.Event()
        self._status, self._since = JobStatus(), time.monotonic()

        def watch(kind: Kind, **selectors: str) -> ListWatch:
            return ListWatch(api, kind, namespace, selectors, self._changed.set)

        self._job = watch(RAY_JOB, fieldSelector=f"metadata.name={name}")
        self._pods = watch(POD, labelSelector=f"app.kubernetes.io/instance={name}")
        self._events = watch(EVENT, fieldSelector="type=Warning")
        self._workloads, self._pod_groups, self._claims = watch(WORKLOAD), watch(POD_GROUP), watch(CLAIM)
        self._all = (self._job, self._pods, self._events, self._workloads, self._pod_groups, self._claims)

    def __enter__(self) -> Observer:
        for each in self._all:
            each.start()
        return self

    def __exit__(self, *exception: object) -> None:
        for each in self._all:
            each.close()

    def wait(self, timeout_s: float) -> None:
        """Returns when something has changed, or after `timeout_s` seconds."""
        self._changed.wait(timeout_s)
        self._changed.clear()

    @property
    def is_ready(self) -> bool:
        """Whether the RayJob was looked for."""
        return self._job.is_listed

    @property
    def trouble(self) -> ApiError | None:
        """Why the RayJob cannot be watched at the moment."""
        return self._job.trouble

    @property
    def is_forbidden(self) -> bool:
        """Whether the RayJob may not be watched, and that is not going to pass."""
        return self._job.is_forbidden

    def observed(self) -> Observed:
        jobs = self._job.objects()
        return Observed(
            job=jobs[0] if jobs else None,
            pods=self._pods.objects(),
            events=self._events.objects(),
            workloads=self._workloads.objects(),
            pod_groups=self._pod_groups.objects(),
            claims=self._claims.objects(),
            now=time.time(),
        )

    def unchanged_s(self, status: JobStatus) -> float:
        """Seconds since the RayJob's status became this one; to be asked with every new one."""
        if status != self._status:
            self._status, self._since = status, time.monotonic()
        return time.monotonic() - self._since
