"""What lies in the namespace: itself, the pods' account, the Secrets that are referred to, the volume."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from zerofleet.cluster.config import Check
from zerofleet.k8s.api import Api, ApiError
from zerofleet.k8s.bootstrap.namespace import ENFORCE
from zerofleet.k8s.paths import CLAIM, NAMESPACE, SECRET, SERVICE_ACCOUNT, STORAGE_CLASS
from zerofleet.k8s.profile import Profile

_LEVELS = ("privileged", "baseline", "restricted")
"""Of pod security, the strictest last."""
_BOOTSTRAP = "`zerofleet k8s bootstrap` writes it"


def get_or_none(api: Api, path: str, *, content: bool = True) -> dict[str, Any] | None:
    """None when it is not there. Without `content` metadata only. Raises ApiError."""
    try:
        return api.get(path) if content else api.get_metadata(path)
    except ApiError as error:
        if error.status == 404:
            return None
        raise


def namespace(api: Api, profile: Profile) -> Iterator[Check]:
    name, wanted = profile.namespace, profile.security.pod_security
    found = get_or_none(api, NAMESPACE.cluster_path(name))
    if found is None:
        yield Check("fail", "namespace", f"{name} is not there: {_BOOTSTRAP}")
        return
    if found.get("status", {}).get("phase") == "Terminating":
        yield Check("fail", "namespace", f"{name} is being deleted: wait until it is gone, and make it again")
        return
    level = (found["metadata"].get("labels") or {}).get(ENFORCE, "")
    if level not in _LEVELS:
        yield Check(
            "warn", "namespace", f"{name} enforces no pod security (label {ENFORCE}): set {wanted}; {_BOOTSTRAP}"
        )
    elif _LEVELS.index(level) > _LEVELS.index(wanted):
        yield Check(
            "fail",
            "namespace",
            f"{name} enforces pod security {level} and the profile's pods keep to {wanted} only: label it {ENFORCE}={wanted}, or set security.pod_security",
        )
    else:
        yield Check("ok", "namespace", f"{name} is there and enforces pod security {level}")


def account(api: Api, profile: Profile) -> Iterator[Check]:
    name = profile.security.service_account
    if name is None:
        yield Check(
            "warn",
            "account",
            "pods run under the namespace's `default`: name one without rights in security.service_account",
        )
    elif get_or_none(api, SERVICE_ACCOUNT.path(profile.namespace, name)) is None:
        yield Check(
            "fail", "account", f"ServiceAccount {name} is not there, and no pod would be admitted: {_BOOTSTRAP}"
        )
    else:
        yield Check("ok", "account", f"ServiceAccount {name} is there")


def secrets(api: Api, profile: Profile) -> Iterator[Check]:
    """That they are there, and their keys where the server's record of writes tells them. Values are never asked for."""
    wanted = {name: set[str]() for name in (profile.storage.secret, profile.security.auth_secret) if name}
    if profile.security.auth_secret:
        wanted[profile.security.auth_secret].add("auth_token")
    for entry in profile.secret_env:
        wanted.setdefault(entry.secret, set()).add(entry.key)
    good = []
    for name, keys in wanted.items():
        found = get_or_none(api, SECRET.path(profile.namespace, name), content=False)
        command = f"kubectl -n {profile.namespace} create secret generic {name} --from-file={next(iter(sorted(keys)), 'KEY')}=FILE"
        if found is None:
            yield Check("fail", "secrets", f"Secret {name} is not there, and pods would wait for it: {command}")
        elif (known := _keys(found)) and (lacking := sorted(keys - known)):
            yield Check(
                "fail",
                "secrets",
                f"Secret {name} has no key {', '.join(lacking)} (it has {', '.join(sorted(known))}): add it, or correct the profile",
            )
        else:
            good.append(name)
    if good:
        yield Check("ok", "secrets", f"{', '.join(good)}: there (their values were not read)")


def pull_secrets(api: Api, profile: Profile) -> Iterator[Check]:
    good = []
    for name in profile.images.pull_secrets:
        if get_or_none(api, SECRET.path(profile.namespace, name), content=False) is None:
            command = f"kubectl -n {profile.namespace} create secret docker-registry {name} --docker-server=... --docker-username=... --docker-password=..."
            yield Check("fail", "image", f"Secret {name}, with which the image is pulled, is not there: {command}")
        else:
            good.append(name)
    if good:
        yield Check("ok", "image", f"the Secrets to pull it with are there: {', '.join(good)}")


def _keys(secret: dict[str, Any]) -> set[str]:
    """Names of a Secret's keys, by what the server wrote down of each change; empty when that says nothing."""
    found = set()
    for entry in secret["metadata"].get("managedFields") or []:
        fields = entry.get("fieldsV1") or {}
        for section in ("f:data", "f:stringData"):
            found |= {key.removeprefix("f:") for key in fields.get(section) or {} if key.startswith("f:")}
    return found


def storage(api: Api, profile: Profile) -> Iterator[Check]:
    config = profile.storage
    if config.claim is None:
        return
    found = get_or_none(api, CLAIM.path(profile.namespace, config.claim))
    if found is None:
        remedy = (
            _BOOTSTRAP
            if config.size_gib
            else "make it, or set storage.size_gib and have `zerofleet k8s bootstrap` write it"
        )
        yield Check("fail", "storage", f"PersistentVolumeClaim {config.claim} is not there: {remedy}")
        return
    phase, modes = found.get("status", {}).get("phase", "Pending"), found["spec"].get("accessModes") or []
    if config.access_mode not in modes:
        yield Check(
            "fail",
            "storage",
            f"PersistentVolumeClaim {config.claim} can be mounted {', '.join(modes) or 'by nobody'} and all pods need it at once: make one with {config.access_mode}",
        )
    elif phase == "Bound":
        size = found.get("status", {}).get("capacity", {}).get("storage", "of unknown size")
        yield Check("ok", "storage", f"PersistentVolumeClaim {config.claim} is bound ({size}, {config.access_mode})")
    elif phase == "Lost":
        yield Check(
            "fail",
            "storage",
            f"PersistentVolumeClaim {config.claim} has lost its volume: restore the volume, or make both anew",
        )
    else:
        yield from _unbound(api, config.claim, found["spec"].get("storageClassName"))


def _unbound(api: Api, claim: str, name: str | None) -> Iterator[Check]:
    """Why a claim has no volume yet, as far as its class tells."""
    text = f"PersistentVolumeClaim {claim} has no volume"
    if not name:
        yield Check(
            "fail",
            "storage",
            f"{text} and no StorageClass that would make one: set storage.storage_class, or bind a volume to it",
        )
        return
    found = get_or_none(api, STORAGE_CLASS.cluster_path(name))
    if found is None:
        yield Check(
            "fail",
            "storage",
            f"{text}: its StorageClass {name} is not there. Name one that is (kubectl get storageclass)",
        )
    elif found.get("volumeBindingMode") == "WaitForFirstConsumer":
        yield Check("ok", "storage", f"{text} yet: StorageClass {name} makes it for the first pod")
    else:
        yield Check(
            "fail",
            "storage",
            f"{text} from StorageClass {name}: its provisioner says why (kubectl describe pvc {claim})",
        )
