"""`zerofleet doctor`: is this machine, or a cluster, ready to train? One line per check, with a remedy where it is not. With --leaks: what
has been left there."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from packaging.requirements import Requirement

from zerofleet.cluster.config import Check
from zerofleet.launch.backends.options import BACKENDS
from zerofleet.launch.exit_codes import OK, RUN_FAILED
from zerofleet.trainer import ops
from zerofleet.trainer.errors import StorageError, UserError
from zerofleet.trainer.run_folder import default_storage
from zerofleet.trainer.storage import Storage

if TYPE_CHECKING:
    from zerofleet.launch.commands.types import Verbs

_GIB = 1024**3
_MIN_MEMORY_GIB = 4
_MIN_SHM_GIB = 1
_MIN_DISK_GIB = 5


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "doctor",
        help="check this machine, clear stale build locks and leftovers of dead drivers; or check a Ray or Kubernetes cluster; or find leaks",
    )
    parser.add_argument("--backend", choices=BACKENDS, help="what to check (default: this machine)")
    parser.add_argument(
        "--address",
        metavar="URL",
        help="a Ray cluster's job API, http(s)://HOST:8265, to check in place of this machine",
    )
    parser.add_argument(
        "--context", metavar="NAME", help="kuberay: context of the kubeconfig (default: the current one)"
    )
    parser.add_argument(
        "--profile", metavar="PROFILE", help="kuberay: YAML file of the platform, which the cluster is held against"
    )
    parser.add_argument("--recipe", metavar="FILE", help="with a cluster: whether this job fits there")
    parser.add_argument(
        "--leaks",
        action="store_true",
        help="find what dead drivers, or ended runs on Kubernetes, have left; removes nothing",
    )
    parser.add_argument(
        "--namespace",
        metavar="NAME",
        help="kuberay, --leaks: where to look (default: the profile's, else the context's)",
    )
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    failed = False
    for check in _chosen(arguments):
        failed |= check.level == "fail"
        sys.stdout.write(f"{check.level:<5} {check.name:<12} {check.text}\n")
        sys.stdout.flush()
    return RUN_FAILED if failed else OK


def _chosen(arguments: argparse.Namespace) -> Iterator[Check]:
    """The checks that the options ask for. The clients of clusters are imported where they are needed. Raises UserError."""
    place = arguments.backend or ("ray" if arguments.address is not None else "local")
    if place != "kuberay" and (arguments.profile or arguments.context or arguments.namespace):
        raise UserError("--profile, --context and --namespace are about Kubernetes: they go with --backend kuberay")
    if place != "ray" and arguments.address is not None:
        raise UserError("--address is the place of a Ray cluster's job API: it goes with --backend ray")
    if place == "local" and arguments.recipe is not None:
        raise UserError(
            "--recipe goes with --address or --backend kuberay; on this machine `zerofleet plan RECIPE` says what fits"
        )
    if place == "kuberay":
        from zerofleet.launch.backends import kuberay_checks

        if arguments.leaks:
            return kuberay_checks.find_leaks(arguments.context, arguments.namespace, arguments.profile)
        return kuberay_checks.examine_kubernetes(arguments.context, arguments.profile, arguments.recipe)
    if place == "ray":
        if arguments.leaks:
            raise UserError("--leaks looks at this machine, or at Kubernetes: run it on the hosts of the Ray cluster")
        if arguments.address is None:
            raise UserError("--backend ray needs --address: the cluster's job API, http(s)://HOST:8265")
        from zerofleet.launch.backends.ray_checks import examine_cluster

        return examine_cluster(arguments.address, arguments.recipe)
    return leaks() if arguments.leaks else examine()


def examine() -> Iterator[Check]:
    """All checks, one after the other."""
    yield Check("ok", "python", f"{sys.version.split()[0]} in {sys.prefix}")
    yield packages()
    yield machine()
    yield from spaces()
    yield from op_builds()
    yield storage(default_storage())
    yield leftovers()


# -- packages ------------------------------------------------------------------------------------------------------
def packages() -> Check:
    """Installed packages against zerofleet's requirements, and against the versions that were tested."""
    requirements = [Requirement(text) for text in metadata.requires("zerofleet") or ()]
    wanted = [req for req in requirements if req.marker is None or req.marker.evaluate({"extra": "train"})]
    missing = [problem for req in wanted if (problem := _unmet(req))]
    if missing:
        return Check(
            "fail", "packages", f"{'; '.join(missing)}. Install them: pip install -c constraints.txt -e '.[train]'"
        )
    tested = _tested_versions()
    other = [
        f"{name} {installed} (tested: {tested[name]})"
        for name in sorted(req.name.lower() for req in wanted)
        if name in tested and (installed := _public(metadata.version(name))) != tested[name]
    ]
    if other:
        return Check("warn", "packages", f"not the tested versions: {', '.join(other)}. See constraints.txt")
    return Check("ok", "packages", f"{len(wanted)} requirements met" + (", tested versions" if tested else ""))


def _unmet(requirement: Requirement) -> str:
    try:
        installed = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is missing"
    if requirement.specifier.contains(_public(installed), prereleases=True):
        return ""
    return f"{requirement.name} is {installed}, needed is {requirement.specifier}"


def _public(version: str) -> str:
    """Without the local part: 2.13.0+cpu is torch 2.13.0."""
    return version.partition("+")[0]


def _tested_versions() -> dict[str, str]:
    """The pins of constraints.txt; none when this is not a checkout."""
    path = Path(__file__).parents[2] / "constraints.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    pins = (line.split(";")[0].strip().partition("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name.lower(): version for name, _, version in pins}


# -- machine -------------------------------------------------------------------------------------------------------
def machine() -> Check:
    """Cores and memory."""
    memory = psutil.virtual_memory()
    text = f"{len(os.sched_getaffinity(0))} cores, {memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB memory free"
    if memory.available < _MIN_MEMORY_GIB * _GIB:
        return Check("warn", "machine", f"{text}: ranks need about 1 GiB each besides the model. Free some memory")
    return Check("ok", "machine", text)


def spaces() -> Iterator[Check]:
    """/dev/shm, and the disks of caches and temporary files."""
    yield _space("/dev/shm", Path("/dev/shm"), _MIN_SHM_GIB, "enlarge it (in containers: --shm-size)")
    cache = Path(os.environ.get("ZEROFLEET_CACHE") or "~/.cache").expanduser()
    yield _space("cache disk", cache, _MIN_DISK_GIB, "free space, or set ZEROFLEET_CACHE to another disk")
    local = Storage(default_storage())
    if local.is_local:
        yield _space(
            "run disk", local.local_path(), _MIN_DISK_GIB, "free space, or set ZEROFLEET_STORAGE to another disk"
        )


def _space(name: str, path: Path, least_gib: float, remedy: str) -> Check:
    existing = next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))
    free = shutil.disk_usage(existing).free
    text = f"{free / _GIB:.1f} GiB free at {existing}"
    return Check("ok", name, text) if free >= least_gib * _GIB else Check("warn", name, f"{text}: {remedy}")


def op_builds() -> Iterator[Check]:
    """What builds DeepSpeed's op, the op itself, and locks that a killed build left behind."""
    missing = ops.missing_tools()
    if missing:
        yield Check("warn", "compiler", f"missing {' and '.join(missing)}: ranks use gloo alone until it is installed")
    else:
        yield Check("ok", "compiler", "compiler, headers and ninja are there")
    if ops.is_built(ops.COMMUNICATION_OP):
        yield Check("ok", "ops", f"{ops.COMMUNICATION_OP} is built in {ops.extensions_root()}")
    elif not missing:
        remedy = "the first start builds it (about 100 s). Build it now: python -m zerofleet.trainer.ops"
        yield Check("warn", "ops", f"{ops.COMMUNICATION_OP} is not built: {remedy}")
    for lock in ops.clear_stale_locks():
        yield Check(
            "warn", "ops", f"removed a stale lock ({lock.path}, {lock.age_s:.0f} s old): a build was killed there"
        )


# -- storage and processes -----------------------------------------------------------------------------------------
def storage(url: str) -> Check:
    """Whether run folders can be written."""
    try:
        Storage(url).probe_writable()
    except StorageError as error:
        return Check("fail", "storage", str(error))
    return Check("ok", "storage", f"{Storage(url).path()} is writable")


def leftovers() -> Check:
    """Ends local Rays whose driver has died."""
    try:
        from zerofleet.cluster.local import reap_leftovers
    except ImportError as error:
        return Check("warn", "leftovers", f"not looked for: {error.name} is not installed")
    ended = [f"the local Ray of run {leftover.run} (pid {leftover.head.pid})" for leftover in reap_leftovers()]
    return Check("warn", "leftovers", f"ended {', '.join(ended)}") if ended else Check("ok", "leftovers", "none")


def leaks() -> Iterator[Check]:
    """What dead drivers have left on this machine."""
    try:
        from zerofleet.cluster.leaks import local_leaks
    except ImportError as error:
        yield Check("warn", "leaks", f"not looked for: {error.name} is not installed")
        return
    found = False
    for check in local_leaks():
        found = True
        yield check
    if not found:
        yield Check("ok", "leaks", "none on this machine")
