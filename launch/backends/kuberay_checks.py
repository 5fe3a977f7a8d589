"""`zerofleet doctor --backend kuberay`: is a cluster ready for runs as a profile describes them? And what have earlier runs left there?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from zerofleet.cluster.config import Check
from zerofleet.k8s import leaks
from zerofleet.k8s.api import Api, ApiError
from zerofleet.k8s.health.examine import examine
from zerofleet.k8s.profile import Profile
from zerofleet.k8s.rayjob import ray_job
from zerofleet.k8s.workload import Workload
from zerofleet.launch.backends.kuberay import checked
from zerofleet.launch.config import load_job
from zerofleet.launch.workload import load_profile
from zerofleet.trainer.errors import UserError

PATIENCE_S = 10.0
"""How long an API server that does not answer is asked: whoever examines wants to know it."""
NAME = "zerofleet-doctor"
"""Of the RayJob that is tried and not created."""
_QUICKSTART = Path(__file__).parents[1] / "recipes/quickstart.yaml"


def examine_kubernetes(context: str | None, profile_path: str | None, recipe: str | None) -> Iterator[Check]:
    """All checks. Raises UserError for a wrong profile or recipe, and where there is no kubeconfig."""
    if recipe is not None and profile_path is None:
        raise UserError("--recipe is held against the cluster's nodes as a profile describes them: give --profile too")
    profile = load_profile(profile_path) if profile_path is not None else None
    if profile is None:
        yield from examine(Api(context, PATIENCE_S), None, None)
        return
    tried = _workload(profile, recipe)
    asked = tried.cluster if recipe is not None else None
    yield from examine(Api(context, PATIENCE_S), profile, ray_job(profile, tried), asked)


def _workload(profile: Profile, recipe: str | None) -> Workload:
    """The recipe's, or a small one that takes a node of the profile. Raises UserError with what lint says of the former."""
    if recipe is not None:
        return checked(load_job(recipe, [f"run.name={NAME}"]), profile, None)
    ranks = profile.workers.gpus or 1
    fitting = [f"cluster.ranks_per_node={ranks}", f"cluster.gpus_per_rank={int(profile.workers.gpus > 0)}"]
    nodes = ["cluster.nodes=2", "cluster.min_nodes=1"] if profile.lifecycle.autoscaling else ["cluster.nodes=1"]
    batch = f"train.global_batch_size={ranks * 8}"
    job = load_job(_QUICKSTART, [f"run.name={NAME}", "cluster.cpus_per_rank=0.1", batch, *fitting, *nodes])
    return checked(job, profile, None)


def find_leaks(context: str | None, namespace: str | None, profile_path: str | None) -> Iterator[Check]:
    """Of the namespace that is named, else the profile's, else the context's."""
    api = Api(context, PATIENCE_S)
    profile = load_profile(profile_path) if profile_path is not None else None
    where = namespace or (profile.namespace if profile else api.namespace)
    try:
        found = [*leaks.look(api, where, context)]
    except ApiError as error:
        yield Check("fail", "leaks", f"namespace {where} cannot be looked at: {error}")
        return
    yield from found
    if not found:
        yield Check("ok", "leaks", f"none in namespace {where}")
