"""Stands in for KubeRay's operator: RayJobs of one namespace become RayClusters, pods and submitter Jobs, and their status walks as KubeRay's does.

Reads what the API server stored, and knows nothing else. Left out: everything that zerofleet does not render (HTTP, sidecar and
interactive mode, suspension, autoscaling, services, probes); workers are made when the head has its address, since there is no DNS. Workers that are
missing are made again, as KubeRay does: one that is being deleted counts until it is gone, one that has failed is deleted first; heads are not.
"""

from __future__ import annotations

import base64
import copy
import ctypes
import json
import os
import secrets
import shlex
import threading
import time
import urllib.error
import urllib.request
from typing import Any

from tests.support.kube.kubelet import Kubelet
from tests.support.kube.pods import SECRET
from zerofleet.k8s.api import Api, ApiError
from zerofleet.k8s.list_watch import ListWatch
from zerofleet.k8s.paths import POD, RAY_CLUSTER, RAY_JOB, Kind

JOB = Kind("batch", "v1", "jobs", "Job")
_LOOK_S = 0.3
_CLONE_NEWNET = 0x40000000
_FINALIZER = "ray.io/rayjob-finalizer"
_MAX_NAME = 47


class Operator:
    """`with Operator(api, namespace, kubelet) as operator:`"""

    def __init__(self, api: Api, namespace: str, kubelet: Kubelet) -> None:
        self._api, self._namespace, self._kubelet = api, namespace, kubelet
        self._changed, self.closing = threading.Event(), threading.Event()
        self._watch = ListWatch(api, RAY_JOB, namespace, {}, self._changed.set)
        self._known: dict[str, threading.Thread] = {}
        self.walked: list[tuple[str, str]] = []
        """(RayJob, jobDeploymentStatus), in order."""
        self.errors: list[str] = []
        self._thread = threading.Thread(target=self._run, name="operator", daemon=True)

    def __enter__(self) -> Operator:
        self._watch.start()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.closing.set()
        self._changed.set()
        self._watch.close()
        self._thread.join(10)
        for thread in self._known.values():
            thread.join(10)

    def _run(self) -> None:
        while not self.closing.is_set():
            self._changed.wait(1.0)
            self._changed.clear()
            for job in self._watch.objects():
                uid = job["metadata"]["uid"]
                if uid not in self._known:
                    self._known[uid] = threading.Thread(target=self._reconcile, args=(job,), daemon=True)
                    self._known[uid].start()

    def _reconcile(self, job: dict[str, Any]) -> None:
        try:
            OneJob(self, self._api, self._namespace, self._kubelet, job).run()
        except Exception as error:
            self.errors.append(repr(error))
            raise


class OneJob:
    """One RayJob, in a thread of its own."""

    def __init__(self, operator: Operator, api: Api, namespace: str, kubelet: Kubelet, job: dict[str, Any]) -> None:
        self._operator, self._api, self._namespace, self._kubelet = operator, api, namespace, kubelet
        self._job, self._name = job, job["metadata"]["name"]
        self._path = RAY_JOB.path(namespace, self._name)
        self._cluster, self._id, self._token, self._failed = "", "", "", 0

    def run(self) -> None:
        if len(self._name) > _MAX_NAME:
            self._say(jobDeploymentStatus="ValidationFailed", reason="ValidationFailed", message="name is too long")
            return
        self._api.patch(self._path, {"metadata": {"finalizers": [_FINALIZER]}})
        while self._once() == "Retrying":
            self._take_down()
        self._wait_for_deletion()

    def _once(self) -> str:
        """One cluster, from Initializing to the job's end. Returns the last jobDeploymentStatus."""
        suffix = secrets.token_hex(3)[:5]
        self._cluster, self._id = f"{self._name}-{suffix}", f"{self._name}-{secrets.token_hex(3)[:5]}"
        self._say(jobDeploymentStatus="Initializing", rayClusterName=self._cluster, jobId=self._id, failed=self._failed)
        owner = self._create_cluster()
        head = self._create_pod(owner, "headgroup", self._spec["headGroupSpec"], "")
        address = self._wait_for_address(head)
        if not address:
            return "Deleted"
        self._keep_workers(owner, address)
        if not self._wait_for_dashboard(head, address):
            return "Deleted"
        self._create_submitter(address)
        self._say(jobDeploymentStatus="Running", dashboardURL=f"{address}:8265", startTime=_now())
        return self._follow(owner, head, address)

    @property
    def _spec(self) -> dict[str, Any]:
        return dict(self._job["spec"]["rayClusterSpec"])

    # -- what it creates -------------------------------------------------------------------------------------------
    def _create_cluster(self) -> dict[str, Any]:
        metadata = {
            "name": self._cluster,
            "namespace": self._namespace,
            "ownerReferences": [_owner(self._job, "ray.io/v1", "RayJob")],
        }
        made = self._api.create(
            RAY_CLUSTER.path(self._namespace),
            {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata, "spec": self._spec},
        )
        owner = _owner(made, "ray.io/v1", "RayCluster")
        if self._spec["authOptions"]["mode"] == "token":
            self._token = secrets.token_hex(32)
            data = {"auth_token": base64.b64encode(self._token.encode()).decode()}
            secret = {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {**metadata, "ownerReferences": [owner]},
                "data": data,
            }
            self._api.create(SECRET.path(self._namespace), secret)
        return owner

    def _keep_workers(self, owner: dict[str, Any], head: str) -> None:
        """As KubeRay's reconcilePods."""
        for group in self._spec["workerGroupSpecs"]:
            chosen = f"ray.io/cluster={self._cluster},ray.io/group={group['groupName']}"
            pods = self._api.get(POD.path(self._namespace), {"labelSelector": chosen})["items"]
            failed = [pod for pod in pods if pod["status"].get("phase") in ("Failed", "Succeeded")]
            for pod in failed:
                self._api.delete(POD.path(self._namespace, pod["metadata"]["name"]))
            for _ in range(0 if failed else group["replicas"] - len(pods)):
                self._create_pod(owner, group["groupName"], group, head)

    def _create_pod(self, owner: dict[str, Any], group: str, spec: dict[str, Any], head: str) -> str:
        template = copy.deepcopy(spec["template"])
        kind = "worker" if head else "head"
        name = f"{self._cluster}-{group}-worker-{secrets.token_hex(3)[:5]}" if head else f"{self._cluster}-head"
        labels = {
            **template["metadata"].get("labels", {}),
            "ray.io/cluster": self._cluster,
            "ray.io/node-type": kind,
            "ray.io/group": group,
        }
        labels |= {
            "ray.io/originated-from-cr-name": self._name,
            "ray.io/originated-from-crd": "RayJob",
            "ray.io/is-ray-node": "yes",
        }
        labels.setdefault("app.kubernetes.io/name", "kuberay")
        container = template["spec"]["containers"][0]
        limits = container["resources"]["limits"]
        parameters = {"num-cpus": limits["cpu"], **spec["rayStartParams"], "metrics-export-port": "8080"}
        if head:
            start = f"ray start --address={head}:6379 --block {_flags(parameters)}"
            container["env"] += [{"name": "FQ_RAY_IP", "value": head}, {"name": "RAY_ADDRESS", "value": f"{head}:6379"}]
            # KubeRay's wait-gcs-ready is an init container that asks `ray health-check`
            start = f"until (exec 3<>/dev/tcp/{head}/6379) 2>/dev/null; do sleep 0.5; done; {start}"
        else:
            start = f"ray start --head --block --dashboard-host=0.0.0.0 {_flags(parameters)}"
            container["env"] += [{"name": "RAY_ADDRESS", "value": "127.0.0.1:6379"}]
        container["command"], container["args"] = ["/bin/bash", "-c", "--"], [f"ulimit -n 65536; {start}"]
        container["env"] += self._auth()
        metadata = {
            **template["metadata"],
            "name": name,
            "namespace": self._namespace,
            "labels": labels,
            "ownerReferences": [owner],
        }
        self._api.create(
            POD.path(self._namespace),
            {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]},
        )
        return name

    def _auth(self) -> list[dict[str, Any]]:
        if not self._token:
            return []
        reference = {"secretKeyRef": {"name": self._cluster, "key": "auth_token"}}
        return [{"name": "RAY_AUTH_MODE", "value": "token"}, {"name": "RAY_AUTH_TOKEN", "valueFrom": reference}]

    def _create_submitter(self, head: str) -> None:
        template = copy.deepcopy(self._job["spec"]["submitterPodTemplate"])
        dashboard, job = f"http://{head}:8265", shlex.quote(self._id)
        script = (
            f"if ! ray job status --address {dashboard} {job} >/dev/null 2>&1 ; then "
            f"ray job submit --address {dashboard} --no-wait --submission-id {job} -- {self._job['spec']['entrypoint']} ; fi ; "
            f"ray job logs --address {dashboard} --follow {job}"
        )
        container = template["spec"]["containers"][0]
        container["command"], container["args"] = ["/bin/bash", "-c", "--"], [script]
        container["env"] = [*container.get("env", []), {"name": "PYTHONUNBUFFERED", "value": "1"}, *self._auth()]
        metadata = {
            "name": self._name,
            "namespace": self._namespace,
            "ownerReferences": [_owner(self._job, "ray.io/v1", "RayJob")],
        }
        spec = {"backoffLimit": self._job["spec"]["submitterConfig"]["backoffLimit"], "template": template}
        self._api.create(
            JOB.path(self._namespace), {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}
        )

    # -- what it waits for -----------------------------------------------------------------------------------------
    def _wait_for_address(self, pod: str) -> str:
        while not self._is_to_end():
            status = self._api.get(POD.path(self._namespace, pod)).get("status", {})
            if status.get("phase") == "Running":
                return str(status["podIP"])
            time.sleep(_LOOK_S)
        return ""

    def _wait_for_dashboard(self, head: str, address: str) -> bool:
        while not self._is_to_end():
            if self._ask(head, address, "/api/version"):
                return True
            time.sleep(1.0)
        return False

    def _follow(self, owner: dict[str, Any], head: str, address: str) -> str:
        """The Ray job's status into the RayJob's, until it has ended."""
        said = ""
        while not self._is_to_end():
            self._keep_workers(owner, address)
            info = self._ask(head, address, f"/api/jobs/{self._id}")
            status = str(info.get("status", "")) if info else ""
            if status and status != said:
                said = status
                if status not in ("SUCCEEDED", "FAILED", "STOPPED"):
                    self._say(jobStatus=status)
            if status in ("SUCCEEDED", "STOPPED"):
                self._say(jobStatus=status, jobDeploymentStatus="Complete", endTime=_now(), message=info.get("message"))
                return "Complete"
            if status == "FAILED":
                self._failed += 1
                again = self._failed <= self._job["spec"].get("backoffLimit", 0)
                deployment = "Retrying" if again else "Failed"
                self._say(
                    jobStatus=status,
                    jobDeploymentStatus=deployment,
                    reason="AppFailed",
                    message=info.get("message"),
                    failed=self._failed,
                )
                return deployment
            time.sleep(_LOOK_S)
        return "Deleted"

    def _is_to_end(self) -> bool:
        if self._operator.closing.is_set():
            return True
        try:
            return bool(self._api.get(self._path)["metadata"].get("deletionTimestamp"))
        except ApiError as error:
            if error.status == 404:
                return True
            raise

    def _wait_for_deletion(self) -> None:
        """The cluster goes `ttlSecondsAfterFinished` after the end, and everything with the RayJob: the garbage collector's work."""
        ends, is_down = time.monotonic() + self._job["spec"].get("ttlSecondsAfterFinished", 0), False
        while not self._is_to_end():
            if not is_down and time.monotonic() > ends and self._job["spec"].get("shutdownAfterJobFinishes"):
                self._api.delete(RAY_CLUSTER.path(self._namespace, self._cluster))
                is_down = True
            time.sleep(_LOOK_S)
        if not self._operator.closing.is_set():
            self._let_go()

    def _let_go(self) -> None:
        """Takes its finalizer away, and leaves those of others."""
        try:
            metadata = self._api.get(self._path)["metadata"]
            left = [name for name in metadata.get("finalizers", []) if name != _FINALIZER]
            self._api.patch(
                self._path, {"metadata": {"finalizers": left, "resourceVersion": metadata["resourceVersion"]}}
            )
        except ApiError as error:
            if error.status not in (404, 409):
                raise
            if error.status == 409:  # it has changed meanwhile
                self._let_go()

    def _take_down(self) -> None:
        self._api.delete(RAY_CLUSTER.path(self._namespace, self._cluster), {"propagationPolicy": "Background"})
        self._api.delete(JOB.path(self._namespace, self._name), {"propagationPolicy": "Foreground"})
        while not self._is_to_end() and self._submitter_is_there():
            time.sleep(_LOOK_S)

    def _submitter_is_there(self) -> bool:
        try:
            self._api.get(JOB.path(self._namespace, self._name))
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    def _ask(self, head: str, address: str, path: str) -> dict[str, Any]:
        """Ray's dashboard, from inside the head's network; empty when it does not answer."""
        pod = self._kubelet.pod(self._namespace, head)
        if pod is None or not pod.pid:
            return {}
        found: dict[str, Any] = {}
        thread = threading.Thread(target=_fetch, args=(pod.pid, f"http://{address}:8265{path}", self._token, found))
        thread.start()
        thread.join()
        return found

    def _say(self, **status: Any) -> None:
        self._api.patch(
            f"{self._path}/status", {"status": {key: value for key, value in status.items() if value is not None}}
        )
        if "jobDeploymentStatus" in status:
            self._operator.walked.append((self._name, status["jobDeploymentStatus"]))


def _fetch(pid: int, url: str, token: str, found: dict[str, Any]) -> None:
    """In a thread that enters the network of process `pid` and ends there."""
    try:
        with open(f"/proc/{pid}/ns/net") as network:
            if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as answer:
            found.update(json.loads(answer.read()))
    except (OSError, ValueError):
        pass  # it does not answer yet, or is gone


def _flags(parameters: dict[str, str]) -> str:
    return " ".join(f"--{key}={value}" for key, value in sorted(parameters.items()))


def _owner(of: dict[str, Any], version: str, kind: str) -> dict[str, Any]:
    metadata = of["metadata"]
    return {
        "apiVersion": version,
        "kind": kind,
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
