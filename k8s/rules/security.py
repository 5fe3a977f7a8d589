"""Pod security, tokens, secrets and storage: what a namespace refuses, what would leak, what pods cannot open."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlsplit

from zerofleet.cluster.config import Finding
from zerofleet.k8s.containers import NODE_NAME, SCRATCH_FOLDER, head_environment, own_environment, worker_environment
from zerofleet.k8s.profile import Profile
from zerofleet.k8s.rules.naming import error, warning
from zerofleet.k8s.workload import Workload

GATE_TLS = "RayClusterMTLS"
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^\s,;'\"]+", re.IGNORECASE)
_SIGNED = re.compile(r"[?&](?:X-Amz-Signature|X-Goog-Signature|Signature|sig)=", re.IGNORECASE)
"""In a URL that lets whoever has it read, for as long as it is valid: of S3, Google's storage, CloudFront, Azure."""
_NAMED_ACCOUNT = ("abfs", "abfss", "ssh", "git+ssh")
"""Schemes whose user's name is a container's, or no secret."""
_OPERATOR_VARIABLES = (
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
    "RAY_ADDRESS",
    "RAY_REDIS_ADDRESS",
    "REDIS_USERNAME",
    "RAY_enable_autoscaler_v2",
)
"""Those that KubeRay sets itself, or refuses a RayJob for."""
_TAKEN_FOLDERS = ("/dev", "/etc", "/proc", "/sys", "/tmp/ray", "/usr")
"""What the image, Ray and zerofleet have there."""


def security(profile: Profile, workload: Workload) -> Iterator[Finding]:
    yield from pod_security_findings(profile)
    yield from _tokens(profile)
    yield from _environment(profile, workload)
    yield from _secrets(profile, workload)
    yield from _storage(profile, workload)


def pod_security_findings(profile: Profile) -> Iterator[Finding]:
    """What the namespace would refuse of the pods."""
    fabric, level, user = profile.fabric, profile.security.pod_security, profile.security.run_as_user
    refused = f"a namespace with pod security `{level}` refuses the workers"
    if fabric.ipc_lock and level != "privileged":
        yield error(
            "fabric.ipc_lock",
            f"{refused}: the capability IPC_LOCK is in neither `restricted` nor `baseline`. Set it to false and let the container "
            "runtime of these nodes lock memory without limit (LimitMEMLOCK=infinity), or use a namespace with `privileged`",
        )
    if fabric.ipc_lock and user != 0:
        yield error(
            "fabric.ipc_lock",
            f"the containers run as user {user if user is not None else 'of the namespace'}, and Kubernetes gives added capabilities to "
            "root only: NCCL could not lock memory all the same. Let the container runtime lock memory without limit (LimitMEMLOCK=infinity)",
        )
    if fabric.host_network and level != "privileged":
        yield error(
            "fabric.host_network",
            f"{refused}: the host's network is in neither `restricted` nor `baseline`. Use fabric.networks (Multus, SR-IOV), or a "
            "namespace with `privileged`",
        )
    if profile.workers.scratch and profile.workers.scratch.host_path and level != "privileged":
        yield error(
            "workers.scratch.host_path",
            f"{refused}: folders of the node are in neither `restricted` nor `baseline`. Use scratch.storage_class (a provisioner of local "
            "volumes), remove both for an emptyDir, or use a namespace with `privileged`",
        )
    if user == 0 and level == "restricted":
        yield error(
            "security.run_as_user",
            "a namespace with pod security `restricted` refuses root: set 1000 (the image has to work as that user)",
        )
    if fabric.kind != "tcp" and not fabric.ipc_lock:
        yield warning(
            "fabric.kind",
            f"{fabric.kind} locks memory for its transfers: the container runtime of these nodes must allow it (ulimit -l unlimited), "
            "since pods of this namespace get no capability for it. `ulimit -l` in a pod tells",
        )


def _tokens(profile: Profile) -> Iterator[Finding]:
    if profile.security.auth == "disabled":
        yield warning(
            "security.auth",
            "without a token whoever reaches the head's port 8265 runs code in the pods (GHSA-gx77-xgc2-4888): set `token`",
        )
        if profile.security.auth_secret:
            yield error(
                "security.auth_secret", "it has no effect with security.auth=disabled: remove it, or set `token`"
            )
    if profile.security.tls and GATE_TLS not in profile.operator.feature_gates:
        yield error(
            "security.tls",
            f"KubeRay refuses tlsOptions unless its alpha gate {GATE_TLS} is on, and cert-manager has to be there: turn it on and say "
            f"so in operator.feature_gates, or set it to false",
        )
    if profile.security.service_account is None:
        yield warning(
            "security.service_account",
            "pods would run under the namespace's `default`, and get every right that anybody ever gave it: make one without rights and name it",
        )


def _environment(profile: Profile, workload: Workload) -> Iterator[Finding]:
    own = {
        **own_environment(profile, workload),
        **head_environment(profile, workload),
        **worker_environment(profile),
        **dict.fromkeys((NODE_NAME, *_OPERATOR_VARIABLES), ""),
    }
    taken = "zerofleet or KubeRay sets this variable, or refuses the job for it"
    for name, value in profile.env.items():
        if name in own:
            yield error(f"env.{name}", f"{taken}: remove it")
        elif _SECRET_NAME.search(name):
            yield error(
                f"env.{name}",
                "by its name it is a secret, and whoever may read the job would read it: put it into a Secret and name that in secret_env",
            )
        elif any(_held_secret(url) for url in _URL.findall(value)):
            yield error(
                f"env.{name}",
                "its value holds a URL with credentials, and whoever may read the job would read them: put it into a Secret and name that in "
                "secret_env",
            )
    for number, entry in enumerate(profile.secret_env):
        if entry.variable in own:
            instead = "; use security.auth_secret" if entry.variable == "RAY_AUTH_TOKEN" else ""
            yield error(f"secret_env.{number}", f"{entry.variable}: {taken}: remove it{instead}")
    named = Counter([*profile.env, *(entry.variable for entry in profile.secret_env)])
    for name, count in named.items():
        if count > 1:
            yield error("secret_env", f"{name} is set {count} times, which the API server refuses: keep one")


def _secrets(profile: Profile, workload: Workload) -> Iterator[Finding]:
    storage = profile.storage
    given = {entry.variable for entry in profile.secret_env}
    if "://" in workload.storage and not (storage.secret or storage.workload_identity or _names_credentials(given)):
        yield error(
            "storage.secret",
            f"an object store ({urlsplit(workload.storage).scheme}) needs credentials and nothing gives any: name a Secret with them, list them in secret_env, or set "
            "storage.workload_identity=true where the service account has them",
        )
    if workload.wants_wandb and "WANDB_API_KEY" not in given:
        yield error(
            "secret_env",
            "tracking.wandb is on and no secret gives WANDB_API_KEY: it would write offline files into pods that are deleted. Add "
            "{variable: WANDB_API_KEY, secret: ..., key: ...}, or set tracking.wandb.enabled=false",
        )
    for url in workload.urls:
        if held := _held_secret(url.path):
            yield error(
                url.where,
                f"the URL {held}, and the job can be read by many: take that out of it and put credentials into a Secret",
            )


def _held_secret(url: str) -> str:
    """What of a URL is a secret; empty when nothing is."""
    scheme, _, rest = url.partition("://")
    place = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, _ = place.rpartition("@")
    if at and (":" in user or scheme.lower() not in _NAMED_ACCOUNT):
        return "holds credentials"
    return "holds a signature, by which anybody reads it" if _SIGNED.search(url) else ""


def _names_credentials(variables: set[str]) -> bool:
    return any(_SECRET_NAME.search(name) for name in variables if not name.startswith(("WANDB", "HF_")))


def _storage(profile: Profile, workload: Workload) -> Iterator[Finding]:
    storage, mount = profile.storage, profile.storage.mount_path
    if not storage.claim:
        yield error(
            "storage.claim",
            "the head prepares the data and every worker reads it from the same path, and nothing is shared: name a "
            "PersistentVolumeClaim that many nodes can mount (ReadWriteMany)",
        )
    elif storage.access_mode == "ReadWriteOnce":
        yield error(
            "storage.access_mode",
            f"ReadWriteOnce is mounted by one node, and head and {workload.cluster.nodes} worker(s) need it at once: use a "
            "claim with ReadWriteMany (NFS, CephFS, FSx, Filestore)",
        )
    taken = [
        path
        for path in (*_TAKEN_FOLDERS, *([SCRATCH_FOLDER] if profile.workers.scratch else []))
        if mount == path or path.startswith(f"{mount.rstrip('/')}/") or mount.startswith(f"{path}/")
    ]
    if taken:
        yield error(
            "storage.mount_path",
            f"{mount} would cover {taken[0]}, or lie in it: mount the claim elsewhere, use /mnt/zerofleet",
        )
    for local in workload.paths:
        if not (storage.claim and (local.path == mount or local.path.startswith(f"{mount}/"))):
            yield error(
                local.where,
                f"{local.path} is a path of this machine, which no pod has: put it onto the claim (below {mount}), or use a URL",
            )
