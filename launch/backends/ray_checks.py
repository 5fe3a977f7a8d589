"""`zerofleet doctor --address`: is a Ray cluster ready for runs, and for one recipe's run in particular?"""

from __future__ import annotations

from collections.abc import Iterator

from zerofleet.cluster.config import Check
from zerofleet.cluster.placement import Ask, NodeResources, check_ever_fits, plan
from zerofleet.launch.backends.cluster_report import ClusterFound, check_ray, described_code, problems
from zerofleet.launch.backends.ray_cluster import RayCluster, check_job_for_cluster
from zerofleet.launch.backends.ray_jobs import ClusterUnreachable
from zerofleet.launch.config import load_job
from zerofleet.trainer.errors import UserError, ZerofleetError
from zerofleet.trainer.run_folder import default_storage

_MOST_LISTED = 8


def examine_cluster(address: str, recipe: str | None) -> Iterator[Check]:
    """All checks, one after the other, up to the first that makes the next ones senseless. Raises UserError for a wrong recipe or address."""
    job = load_job(recipe) if recipe is not None else None
    if job is not None:
        check_job_for_cluster(job)
    cluster = RayCluster(address)
    try:
        version = cluster.jobs.ray_version()
    except ClusterUnreachable as error:
        yield Check("fail", "cluster", str(error))
        return
    except UserError as error:
        yield Check("fail", "token", str(error))
        return
    yield Check("ok", "cluster", f"{cluster.jobs.address} answers")
    yield _token(cluster)
    try:
        check_ray(version, cluster.needs, cluster.jobs.address)
        yield Check("ok", "ray", f"Ray {version}, as zerofleet {cluster.needs.zerofleet} needs it")
        found = cluster.look(job.run.storage if job is not None else default_storage())
    except ZerofleetError as error:
        yield Check("fail", "ray", str(error))
        return
    yield from _nodes(found, cluster, job.run.storage if job is not None else default_storage())
    resources = [node.resources for node in found.nodes]
    yield _fit(Ask.of(job.cluster), resources) if job is not None else _listed(resources)


def _token(cluster: RayCluster) -> Check:
    if cluster.jobs.is_open():
        text = "none is asked for: whoever reaches this address can run code there. Start Ray with RAY_AUTH_MODE=token and a token"
        return Check("warn", "token", text)
    return Check("ok", "token", f"accepted, from {cluster.jobs.token_source}")


def _nodes(found: ClusterFound, cluster: RayCluster, storage: str) -> Iterator[Check]:
    wrong = {problem.what: problem.text for problem in problems(found, cluster.needs, storage)}
    pythons = ", ".join(sorted({node.python for node in found.nodes if node.python}))
    good = {
        "nodes": f"{len(found.nodes)} answered",
        "python": pythons,
        "packages": "every node has what training needs",
        "storage": f"every node sees {storage}",
    }
    for what, text in good.items():
        yield Check("fail", what, wrong[what]) if what in wrong else Check("ok", what, text)
    is_sent = any(node.digest != cluster.needs.digest for node in found.nodes)
    yield Check("ok", "code", described_code(found, cluster.needs, is_sent).removeprefix("code: "))


def _fit(ask: Ask, nodes: list[NodeResources]) -> Check:
    try:
        check_ever_fits(ask, nodes)
    except UserError as error:
        return Check("fail", "resources", f"{error} (or let the cluster's autoscaler add them)")
    if missing := plan(ask, nodes).missing:
        return Check("warn", "resources", f"{missing}. A run would wait for cluster.placement_timeout_s")
    return Check("ok", "resources", f"{ask} are free")


def _listed(nodes: list[NodeResources]) -> Check:
    shown = [
        f"{n.name}: {n.free_cpus:g} of {n.cpus:g} CPUs" + (f", {n.free_gpus:g} of {n.gpus:g} GPUs" if n.gpus else "")
        for n in nodes
    ]
    more = [f"and {len(nodes) - _MOST_LISTED} more"] if len(nodes) > _MOST_LISTED else []
    return Check(
        "ok",
        "resources",
        f"free: {'; '.join([*shown[:_MOST_LISTED], *more])}. --recipe FILE compares them with a job's",
    )
