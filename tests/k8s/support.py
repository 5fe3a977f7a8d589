"""Profiles, recipes and what is rendered from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from zerofleet.k8s.profile import Profile
from zerofleet.k8s.rayjob import documents
from zerofleet.k8s.workload import Workload
from zerofleet.launch.config import JobConfig, load_job
from zerofleet.launch.workload import load_profile, workload_of

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path for path in (ROOT / "launch/recipes").glob("*.yaml") if not path.name.startswith("silos_"))
PROFILES = sorted((ROOT / "k8s/profiles").glob("*.yaml"))
CPU, H100 = ROOT / "k8s/profiles/cpu.yaml", ROOT / "k8s/profiles/h100-infiniband.yaml"
QUICKSTART = ROOT / "launch/recipes/quickstart.yaml"
GPU_RANKS = ["cluster.ranks_per_node=8", "cluster.gpus_per_rank=1", "cluster.nodes=2", "train.global_batch_size=256"]


def changed_profile(path: Path, **changes: Any) -> Profile:
    """A profile with `section__field=value` changes; a section that is not there is made."""
    mapping = yaml.safe_load(path.read_text())
    for dotted, value in changes.items():
        *sections, last = dotted.split("__")
        holder = mapping
        for section in sections:
            holder = holder.setdefault(section, {})
        holder[last] = value
    return Profile.model_validate(mapping)


def job_for(path: Path, *overrides: str, recipe: Path = QUICKSTART) -> JobConfig:
    """A recipe that fits the nodes of a profile."""
    fitting = GPU_RANKS if load_profile(path).workers.gpus else []
    return load_job(recipe, ["run.name=first", *fitting, *overrides])


def rendered(profile: Profile, workload: Workload) -> list[dict[str, Any]]:
    return documents(profile, workload)


def pods_of(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every pod of a RayJob that KubeRay makes, by what it is, as a pod template."""
    cluster = job["spec"]["rayClusterSpec"]
    found = {"head": cluster["headGroupSpec"]["template"], "submitter": job["spec"]["submitterPodTemplate"]}
    for group in cluster["workerGroupSpecs"]:
        found[group["groupName"]] = group["template"]
    return found


def workload(path: Path, *overrides: str, profile: Profile | None = None) -> Workload:
    return workload_of(job_for(path, *overrides), profile or load_profile(path))
