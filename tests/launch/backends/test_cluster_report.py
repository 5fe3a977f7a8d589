import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.specifiers import SpecifierSet

from zerofleet.cluster.placement import Ask, NodeResources
from zerofleet.launch.backends.cluster_report import (
    ClusterFound,
    Needs,
    NodeFound,
    check_ray,
    described_code,
    judge,
    planned_for,
)
from zerofleet.launch.backends.ray_cluster import RayCluster
from zerofleet.launch.config import load_job
from zerofleet.trainer.errors import UserError

GIB = 2**30
RECIPE = Path(__file__).parents[3] / "launch/recipes/quickstart.yaml"
NEEDS = Needs(SpecifierSet("==2.60.0"), SpecifierSet(">=3.11,<3.13"), "0.4.0", "abcdef0123456789")


def node(number: int = 0, **changes) -> NodeFound:
    resources = NodeResources(f"id{number}", f"node-{number}", 4, 0, 4, 0)
    return dataclasses.replace(NodeFound(resources, "3.11.9", "0.4.0", NEEDS.digest), **changes)


def found(*nodes: NodeFound) -> ClusterFound:
    return ClusterFound("2.60.0", nodes)


def test_the_same_code_everywhere_is_used_as_it_is():
    cluster = found(node(0), node(1))
    assert judge(cluster, NEEDS, "/runs") is False
    assert described_code(cluster, NEEDS, False) == "code: zerofleet 0.4.0 as the cluster has it"


@pytest.mark.parametrize("other", [{"digest": "0" * 16}, {"zerofleet": "", "digest": ""}])
def test_other_code_or_none_on_one_node_is_a_reason_to_send_it(other):
    cluster = found(node(0), node(1, **other))
    assert judge(cluster, NEEDS, "/runs") is True
    assert "is sent from here" in described_code(cluster, NEEDS, True)


def test_another_ray_is_refused_with_the_versions():
    with pytest.raises(
        UserError, match=r"runs Ray 2\.55\.1 and zerofleet 0\.4\.0 needs Ray ==2\.60\.0 \(Python .*\): use an image"
    ):
        check_ray("2.55.1", NEEDS, "http://head:8265")
    check_ray("2.60.0", NEEDS, "http://head:8265")


def test_another_python_is_refused_with_all_three_versions():
    nodes = [node(0, python="3.9.1"), node(1, python="3.9.1"), node(2)]
    said = r"Ray 2\.60\.0, Python 3\.9\.1 and zerofleet 0\.4\.0 .* on nodes node-0, node-1; .* needs Ray ==2\.60\.0 and Python .*3\.11"
    with pytest.raises(UserError, match=said):
        judge(found(*nodes), NEEDS, "/runs")


def test_a_missing_dependency_cannot_be_sent():
    said = r"node node-1: deepspeed is missing \(there is Ray 2\.60\.0, .*install zerofleet\[train\] 0\.4\.0"
    with pytest.raises(UserError, match=said):
        judge(found(node(0), node(1, unmet=("deepspeed is missing",))), NEEDS, "/runs")


def test_storage_that_a_node_does_not_see_is_refused():
    with pytest.raises(UserError, match=r"run\.storage='/runs' is not seen by node node-1: .*shared folder"):
        judge(found(node(0), node(1, sees_storage=False)), NEEDS, "/runs")


def test_everything_that_is_wrong_is_said_at_once():
    with pytest.raises(UserError) as refused:
        judge(found(node(0, sees_storage=False), node(1, python="3.13.0"), node(2, error="it died")), NEEDS, "/runs")
    assert str(refused.value).count("\n  - ") == 3 and "node-2 could not be looked at (it died)" in str(refused.value)


def test_what_zerofleet_says_of_itself_is_what_is_asked_for():
    needs = Needs.ours("0.1.0", "x")
    assert "2.60.0" in needs.ray and "2.61.0" not in needs.ray
    assert "3.11.9" in needs.python and "3.10.0" not in needs.python


def test_an_answer_is_read():
    facts = {"node_id": "n", "name": "h", "cpus": 4, "gpus": 1, "free_cpus": 2, "free_gpus": 1}
    other = facts | {"name": "b", "error": "e"}
    seen = facts | {"python": "3.11.1", "zerofleet": "", "digest": "", "unmet": ["x"]}
    first, second = ClusterFound.from_answer({"ray": "2.60.0", "nodes": [seen, other]}).nodes
    assert (first.resources.name, first.error) == ("b", "e"), "by name, whatever order they answered in"
    assert second == NodeFound(NodeResources("n", "h", 4, 1, 2, 1), "3.11.1", unmet=("x",))


def test_a_plan_is_of_the_smallest_node_that_the_run_has_to_take():
    nodes = [node(number, memory_bytes=gib * GIB, shm_bytes=GIB) for number, gib in enumerate((8, 64, 32))]
    planned = {count: planned_for(found(*nodes), Ask(count, 2, 2.0, 0)) for count in (1, 2, 3, 4)}
    assert [each and each.memory_bytes // GIB for each in planned.values()] == [64, 32, 8, None]
    assert planned[2].name == "node node-2" and planned[2].shm_bytes == GIB and planned[2].cpus == 4
    assert planned_for(found(*nodes), Ask(1, 8, 8.0, 0)) is None, "none has so many cores"
    broken = node(3, memory_bytes=99 * GIB, error="it died")
    assert planned_for(found(nodes[0], broken), Ask(1, 2, 2.0, 0)).memory_bytes == 8 * GIB


def cluster_of(monkeypatch, *nodes):
    cluster = RayCluster("http://head:8265")
    monkeypatch.setattr(cluster, "jobs", SimpleNamespace(ray_version=lambda: "2.60.0", address="http://head:8265"))
    monkeypatch.setattr(cluster, "needs", NEEDS)
    monkeypatch.setattr(cluster, "look", lambda storage: found(*nodes))
    return cluster


def test_a_new_run_is_planned_for_the_clusters_nodes(monkeypatch):
    job = load_job(RECIPE, ["run.storage=/shared/runs"])
    large = cluster_of(monkeypatch, node(0, memory_bytes=64 * GIB, shm_bytes=32 * GIB))
    code, plan = large.check(job, is_new=True).splitlines()
    assert code.startswith("code: ") and plan.startswith("plan: ")
    assert large.check(job, is_new=False) == code, "a run that goes on did fit"
    small = cluster_of(monkeypatch, node(0, memory_bytes=GIB // 32, shm_bytes=GIB // 64))
    with pytest.raises(UserError, match="does not fit"):
        small.check(job, is_new=True)
