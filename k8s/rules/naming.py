"""Names and labels, image and versions."""

from __future__ import annotations

import re
from collections.abc import Iterator

from zerofleet.cluster.config import Finding
from zerofleet.k8s.names import MAX_NAME, config_map_name, tag_of
from zerofleet.k8s.profile import Profile
from zerofleet.k8s.workload import Workload

RAY_VERSION = "2.60.0"
"""What zerofleet runs on: pinned in pyproject.toml."""
_TOKEN_AUTH_SINCE = (2, 52, 0)
_TOKEN_AUTH_OPERATOR = (1, 5, 1)
_PRE_RUNNING_OPERATOR = (1, 6, 0)
_DELETION_OPERATOR, _DELETION_GATE = (1, 6, 0), "RayJobDeletionPolicy"
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_RESERVED = ("ray.io/", "kueue.x-k8s.io/", "volcano.sh/", "app.kubernetes.io/")


def error(where: str, message: str) -> Finding:
    return Finding("error", where, message)


def warning(where: str, message: str) -> Finding:
    return Finding("warning", where, message)


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def naming(profile: Profile, workload: Workload) -> Iterator[Finding]:
    yield from _name(workload)
    yield from label_findings(profile)
    yield from _image(profile)
    yield from _versions(profile)


def _name(workload: Workload) -> Iterator[Finding]:
    name = workload.name
    if name is None:
        yield error(
            "run.name",
            "it is not set, and a name with the time in it would make every rendering another job: give one (run.name=...)",
        )
        return
    if len(name) > MAX_NAME:
        yield error(
            "run.name",
            f"{name!r} has {len(name)} characters; KubeRay refuses a RayJob with more than {MAX_NAME}, since the names of its "
            f"cluster, services and pods ({config_map_name('NAME')} here) are made of it: shorten it by {len(name) - MAX_NAME}",
        )
    if not _DNS_1035.fullmatch(name):
        fitting = re.sub(r"[^-a-z0-9]+", "-", name.lower()).strip("-")
        fitting = fitting if fitting[:1].isalpha() else f"run-{fitting}"
        yield error(
            "run.name",
            f"{name!r} is no DNS label (RFC 1035: a letter first, then letters, digits and `-`), which KubeRay wants of a "
            f"RayJob: call it {fitting[:MAX_NAME]!r}, for example",
        )


def label_findings(profile: Profile) -> Iterator[Finding]:
    """Of the profile's own labels."""
    for key, value in profile.labels.items():
        if key.startswith(_RESERVED):
            yield error(
                f"labels.{key}",
                "labels of this prefix are set by KubeRay, the queue or zerofleet itself: remove it"
                + (", and use `queue`" if key.startswith(("kueue", "volcano")) else ""),
            )
        elif not _LABEL_KEY.fullmatch(key):
            yield error(
                f"labels.{key}",
                "it is no label's key (letters, digits, `-_.`, at most 63; a prefix with `/`): rename it",
            )
        if not _LABEL_VALUE.fullmatch(value):
            yield error(
                f"labels.{key}",
                f"{value!r} is no label's value (at most 63 letters, digits and `-_.`, the first and last no sign): change it",
            )


def _image(profile: Profile) -> Iterator[Finding]:
    image = profile.images.image
    if "@sha256:" in image:
        return
    tag = tag_of(image)
    if not tag:
        yield error("images.image", f"{image} has neither tag nor digest, which means `latest`: pin it (@sha256:...)")
    elif tag == "latest":
        yield error(
            "images.image",
            "`latest` is another image tomorrow: a pod that replaces a lost one would run other code than the rest. Pin a digest (@sha256:...)",
        )
    else:
        yield warning(
            "images.image",
            f"the tag {tag!r} can be moved while the run goes on, and new pods would run other code: pin a digest (@sha256:...)",
        )


def _versions(profile: Profile) -> Iterator[Finding]:
    ray, operator = profile.images.ray_version, profile.operator.version
    if ray != RAY_VERSION:
        yield error(
            "images.ray_version", f"it is {ray} and zerofleet runs on Ray {RAY_VERSION} only: use an image with that"
        )
    if profile.security.auth == "token" and version(ray) < _TOKEN_AUTH_SINCE:
        yield error("security.auth", f"Ray {ray} knows no token, Ray 2.52 is the first that does: use a newer image")
    if profile.security.auth == "token" and version(operator) < _TOKEN_AUTH_OPERATOR:
        yield error(
            "operator.version",
            f"KubeRay {operator} knows no `authOptions`, 1.5.1 is the first that does, and would drop them silently: upgrade it",
        )
    if profile.lifecycle.pre_running_deadline_s and version(operator) < _PRE_RUNNING_OPERATOR:
        yield error(
            "lifecycle.pre_running_deadline_s",
            f"KubeRay {operator} knows no preRunningDeadlineSeconds, 1.6 is the first that does, and would drop it silently: upgrade it, or set null",
        )
    if (
        profile.lifecycle.deletion_rules
        and version(operator) < _DELETION_OPERATOR
        and _DELETION_GATE not in profile.operator.feature_gates
    ):
        yield error(
            "lifecycle.deletion_rules",
            f"before KubeRay 1.6 they need its alpha gate {_DELETION_GATE}, and it is {operator}: turn the gate on and say so in "
            "operator.feature_gates, upgrade KubeRay, or use lifecycle.ttl_s",
        )
