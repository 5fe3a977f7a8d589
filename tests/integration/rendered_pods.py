"""Plays KubeRay for one rendered job, in a process of its own with a Ray token: a head and workers with the rendered start parameters
and CPUs, then the rendered entrypoint with the rendered environment. Prints what happened as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from ray.cluster_utils import Cluster

_FEW_CPUS = 2
"""Of this machine; pods have more."""


def start(job: dict[str, Any]) -> Cluster:
    """A raylet for the head and one per worker."""
    spec = job["spec"]["rayClusterSpec"]
    parameters = spec["headGroupSpec"]["rayStartParams"]
    store = int(parameters["object-store-memory"])
    head = {"num_cpus": int(parameters["num-cpus"]), "object_store_memory": store}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for group in spec["workerGroupSpecs"]:
        store = int(group["rayStartParams"]["object-store-memory"])
        for _ in range(group["replicas"]):
            cluster.add_node(num_cpus=_FEW_CPUS, object_store_memory=store)
    cluster.wait_for_nodes()
    return cluster


def environment(template: dict[str, Any]) -> dict[str, str]:
    """The plain variables of a pod's container."""
    return {entry["name"]: entry["value"] for entry in template["spec"]["containers"][0]["env"] if "value" in entry}


def main(rendered: Path, folder: Path) -> None:
    config_map, _, job = yaml.safe_load_all(rendered.read_text())
    cluster = start(job)
    mounted = folder / "job.yaml"
    mounted.write_text(config_map["data"]["job.yaml"].replace("127.0.0.1:6379", cluster.address))
    program, *arguments, _ = job["spec"]["entrypoint"].split()
    template = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    assert program == "python"
    pod = {**os.environ, **environment(template)}
    driver = subprocess.Popen([sys.executable, *arguments, str(mounted)], env=pod)
    hook = template["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    run = Path(hook[3])
    while not list(run.glob("metrics/attempt-0001/*")) and driver.poll() is None:
        time.sleep(0.1)
    saved = subprocess.run([sys.executable, *hook[1:]], env=pod, timeout=90)
    during = sorted(path.parts[-4] for path in run.glob("checkpoints/*/*/*/manifest.json"))
    seen = {"save": saved.returncode, "during": during, "driver": driver.wait(150)}
    began = time.monotonic()
    seen["hook_after_the_end"] = subprocess.run([sys.executable, *hook[1:]], env=pod, timeout=60).returncode
    seen["hook_after_the_end_s"] = time.monotonic() - began
    seen["again"] = subprocess.run([sys.executable, *arguments, str(mounted)], env=pod, timeout=150).returncode
    sys.stdout.write("SEEN " + json.dumps(seen) + "\n")
    sys.stdout.flush()
    cluster.shutdown()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
