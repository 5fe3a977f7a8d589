"""Whoever admits runs: KubeRay's operator, the queue, and the classes that the profile names."""

from __future__ import annotations

from collections.abc import Iterator

from zerofleet.cluster.config import Check
from zerofleet.k8s.api import Api
from zerofleet.k8s.health.namespace import get_or_none
from zerofleet.k8s.names import tag_of
from zerofleet.k8s.paths import DEPLOYMENT, LOCAL_QUEUE, PRIORITY, RUNTIME, VOLCANO_QUEUE, WORKLOAD_PRIORITY
from zerofleet.k8s.profile import Profile
from zerofleet.k8s.rules.naming import version

_OPERATOR = "app.kubernetes.io/name=kuberay-operator"


def operator(api: Api, profile: Profile) -> Iterator[Check]:
    """Its Deployment, as KubeRay's chart labels it."""
    found = api.get(DEPLOYMENT.cluster_path(), {"labelSelector": _OPERATOR})["items"]
    wanted = profile.operator
    if not found:
        yield Check(
            "fail",
            "operator",
            f"no KubeRay operator runs ({_OPERATOR}), and nobody would look at a RayJob: install {wanted.version}",
        )
        return
    deployment = next((each for each in found if each["metadata"]["namespace"] == wanted.namespace), found[0])
    container, where = deployment["spec"]["template"]["spec"]["containers"][0], deployment["metadata"]["namespace"]
    there = tag_of(str(container["image"])).removeprefix("v")
    arguments = [*(container.get("command") or []), *(container.get("args") or [])]
    text = f"KubeRay {there or container['image']} in namespace {where}"
    if not (deployment.get("status") or {}).get("readyReplicas"):
        yield Check(
            "fail",
            "operator",
            f"{text} has no pod that is ready: kubectl -n {where} describe deployment {deployment['metadata']['name']}",
        )
    elif where != wanted.namespace:
        yield Check(
            "fail",
            "operator",
            f"{text}, and the profile says {wanted.namespace}, which alone may reach the heads: set operator.namespace={where}",
        )
    elif _is_older(there, wanted.version):
        yield Check(
            "fail",
            "operator",
            f"{text} is older than the profile's {wanted.version}: upgrade it, or set operator.version={there}",
        )
    elif profile.queue.kind == "volcano" and not any("volcano" in argument for argument in arguments):
        yield Check(
            "warn",
            "operator",
            f"{text} was not started with --batch-scheduler=volcano, as far as its arguments tell: no gang would be scheduled",
        )
    else:
        yield Check("ok", "operator", text)


def _is_older(there: str, wanted: str) -> bool:
    """Whether a version is known to be older; another spelling than three numbers is not known."""
    parts = there.split(".")
    return len(parts) == 3 and all(part.isdecimal() for part in parts) and version(there) < version(wanted)


def queue(api: Api, profile: Profile) -> Iterator[Check]:
    name = profile.queue.name or ""
    if profile.queue.kind == "kueue":
        yield _kueue(api, profile.namespace, name)
    elif profile.queue.kind == "volcano":
        yield _volcano(api, name)


def _kueue(api: Api, namespace: str, name: str) -> Check:
    found = get_or_none(api, LOCAL_QUEUE.path(namespace, name))
    if found is None:
        return Check(
            "fail", "queue", f"LocalQueue {name} is not in namespace {namespace}: `zerofleet k8s bootstrap` writes it"
        )
    text = f"LocalQueue {name} of ClusterQueue {found['spec'].get('clusterQueue', '')}"
    if (policy := found["spec"].get("stopPolicy", "None")) != "None":
        return Check(
            "fail",
            "queue",
            f"{text} was stopped ({policy}): have its stopPolicy set to None, or use another queue.name",
        )
    active = next((each for each in found.get("status", {}).get("conditions") or [] if each["type"] == "Active"), None)
    if active is None:
        return Check("fail", "queue", f"{text} was not looked at by Kueue: see whether its controller runs")
    if active["status"] != "True":
        return Check(
            "fail",
            "queue",
            f"{text} takes no jobs: {active.get('message') or active.get('reason')}. Ask the platform team to start it",
        )
    waiting = found["status"].get("pendingWorkloads", 0)
    return Check("ok", "queue", f"{text} is active, {waiting} jobs wait in it")


def _volcano(api: Api, name: str) -> Check:
    found = get_or_none(api, VOLCANO_QUEUE.cluster_path(name))
    if found is None:
        return Check("fail", "queue", f"Volcano has no Queue {name}: `zerofleet k8s bootstrap` writes it")
    state = found.get("status", {}).get("state", "")
    if state != "Open":
        return Check(
            "fail",
            "queue",
            f"Volcano's Queue {name} is {state or 'not looked at by Volcano'}: have it opened, or use another queue.name",
        )
    return Check("ok", "queue", f"Volcano's Queue {name} is open")


def classes(api: Api, profile: Profile) -> Iterator[Check]:
    """PriorityClass and RuntimeClass that pods or the queue refer to."""
    priority = WORKLOAD_PRIORITY if profile.queue.kind == "kueue" else PRIORITY
    named = [(priority, profile.queue.priority_class, "queue.priority_class")] if profile.queue.kind != "none" else []
    for kind, name, setting in [*named, (RUNTIME, profile.workers.runtime_class, "workers.runtime_class")]:
        if name and get_or_none(api, kind.cluster_path(name)) is None:
            yield Check("fail", "classes", f"{kind.name} {name} is not there: make it, or correct {setting}")
        elif name:
            yield Check("ok", "classes", f"{kind.name} {name} is there")
