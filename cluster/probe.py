"""What a Ray cluster is, as seen from inside: versions, resources, and whether its nodes see the run's storage.

Runs as a job of a cluster that may not have zerofleet: a copy of this file is sent along, and it imports nothing of ours. What it is
asked lies beside it (`zerofleet_probe.json`); it prints one line that begins with ANSWER. The laptop uses `installed_code` itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

MODULE = "zerofleet_probe"
"""What this file is called on a cluster."""
ANSWER = "ZEROFLEET PROBE "
_PACKAGES = ("benchmarks", "cluster", "k8s", "launch", "trainer")
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_GPU_TOOL = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
_TOOL_TIMEOUT_S = 20.0
_ANSWER_TIMEOUT_S = 60.0
"""How long nodes may take to start a worker and look around."""


def code_files() -> list[tuple[str, Path]]:
    """The installed code of zerofleet: (path in the archive, file), sorted. Empty where it is not installed."""
    found = []
    for package in _PACKAGES:
        try:
            spec = importlib.util.find_spec(f"zerofleet.{package}")
        except ModuleNotFoundError:
            return []
        for root in spec.submodule_search_locations or () if spec else ():
            for file in Path(root).rglob("*"):
                if file.suffix in (".py", ".yaml"):
                    found.append((f"zerofleet/{package}/{file.relative_to(root).as_posix()}", file))
    return sorted(found)


def code_digest() -> str:
    """Tells one state of the code from another, whatever its version says. Empty where it is not installed."""
    whole = hashlib.sha256()
    files = [(name, file) for name, file in code_files() if file.suffix == ".py"]
    for name, file in files:
        data = file.read_bytes()
        whole.update(f"{name} {len(data)}\n".encode() + data)
    return whole.hexdigest()[:16] if files else ""


def code_version() -> str:
    """Of the installed zerofleet; empty where there is none."""
    try:
        return metadata.version("zerofleet") if code_files() else ""
    except metadata.PackageNotFoundError:
        return ""


def unmet(requirements: list[str]) -> list[str]:
    """One phrase for each requirement of the training stack that this Python does not meet."""
    from packaging.requirements import Requirement  # Ray itself requires it

    found = []
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": "train"}):
            continue
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(installed.partition("+")[0], prereleases=True):
            found.append(f"{requirement.name} is {installed}, needed is {requirement.specifier}")
    return found


def sees(place: str) -> bool:
    """Whether a file is there: a path, or a URL of fsspec."""
    if "://" not in place:
        return os.path.exists(place)  # noqa: PTH110
    import fsspec

    files, path = fsspec.core.url_to_fs(place)
    return bool(files.exists(path))


def memory() -> dict[str, int]:
    """Bytes: of the host or the container, of /dev/shm, and of the GPU that has least (0: none, or its driver's tool is not there)."""
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
        host = min(host, int(_CGROUP_LIMIT.read_text()))
    shm = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0
    gpus: list[int] = []
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        told = subprocess.run(_GPU_TOOL, capture_output=True, text=True, timeout=_TOOL_TIMEOUT_S, check=True).stdout
        gpus = [int(line) * 2**20 for line in told.split()]
    return {"memory_bytes": host, "shm_bytes": shm, "gpu_memory_bytes": min(gpus, default=0)}


def look(asked: dict[str, Any]) -> dict[str, Any]:
    """What the node is that this runs on."""
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "zerofleet": code_version(),
        "digest": code_digest(),
        "unmet": unmet(asked["requirements"]),
        **memory(),
    }
    if asked["marker"]:
        try:
            facts["sees_storage"] = sees(asked["marker"])
        except Exception as error:  # noqa: BLE001 - clients of object stores have no error in common
            facts.update(sees_storage=False, storage_error=f"{type(error).__name__}: {error}")
    return facts


def main() -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = json.loads(Path(__file__).with_name(f"{MODULE}.json").read_text())
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="ERROR")
    free = ray._private.state.available_resources_per_node()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    task = ray.remote(num_cpus=0, max_retries=0)(look)
    calls = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(asked)
        for node in nodes
    ]
    ray.wait(calls, num_returns=len(calls), timeout=_ANSWER_TIMEOUT_S)
    answer = {
        "ray": ray.__version__,
        "nodes": [_node(node, call, free) for node, call in zip(nodes, calls, strict=True)],
    }
    sys.stdout.write(f"{ANSWER}{json.dumps(answer)}\n")


def _node(node: dict[str, Any], call: Any, free: dict[str, dict[str, float]]) -> dict[str, Any]:
    import ray

    has, left = node["Resources"], free.get(node["NodeID"], {})
    facts = {
        "node_id": node["NodeID"],
        "name": node["NodeManagerHostname"],
        "labels": node["Labels"],
        "cpus": has.get("CPU", 0.0),
        "gpus": has.get("GPU", 0.0),
    }
    facts |= {"free_cpus": left.get("CPU", 0.0), "free_gpus": left.get("GPU", 0.0)}
    try:
        seen: dict[str, Any] = ray.get(call, timeout=0)
        return facts | seen
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what this node has to say
        return facts | {"error": next(iter(str(error).strip().splitlines()), type(error).__name__)}


if __name__ == "__main__":
    main()
