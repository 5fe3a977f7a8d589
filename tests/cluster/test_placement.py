"""Which nodes a run takes, and what it says when they are missing."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from zerofleet.cluster.config import ClusterConfig
from zerofleet.cluster.placement import Ask, NodeResources, check_ever_fits, plan
from zerofleet.trainer.errors import UserError


def node(name: str, cpus=8.0, gpus=0.0, free_cpus=None, free_gpus=None, **labels: str) -> NodeResources:
    free = cpus if free_cpus is None else free_cpus
    carried = {"ray.io/node-id": f"id-{name}", **labels}
    return NodeResources(f"id-{name}", name, cpus, gpus, free, gpus if free_gpus is None else free_gpus, carried)


def test_the_ask_of_a_job():
    labels = {"party": "a"}
    ask = Ask.of(ClusterConfig(nodes=2, ranks_per_node=3, cpus_per_rank=0.5, gpus_per_rank=1, labels=labels))
    assert (ask.nodes, ask.cpus, ask.gpus, ask.labels) == (2, 1.5, 3, labels)


@pytest.mark.parametrize("labels", [{"a": "!b"}, {"a": "in(b, c)"}, {"a": ""}, {"/a": "b"}, {"a b": "c"}])
def test_labels_with_operators_or_that_ray_does_not_have(labels):
    with pytest.raises(ValidationError, match="labels"):
        ClusterConfig(labels=labels)


def test_it_takes_the_fullest_nodes_that_fit():
    nodes = [node("empty"), node("small", cpus=2), node("half", free_cpus=4), node("busy", free_cpus=1)]
    found = plan(Ask(2, 3, 3, 0), nodes)
    assert [chosen.name for chosen in found.nodes] == ["half", "empty"]
    assert not found.missing


def test_nodes_that_the_run_has_already_are_not_taken_twice():
    found = plan(Ask(1, 1, 1, 0), [node("a"), node("b")], taken=frozenset({"id-a"}))
    assert [chosen.name for chosen in found.nodes] == ["b"]


def test_what_is_missing_in_numbers_by_node():
    found = plan(Ask(3, 4, 4, 4), [node("a", gpus=4), node("b", gpus=4, free_gpus=1), node("c")])
    assert len(found.nodes) == 1
    for words in (
        "asked for 3 node(s) with 4 CPUs and 4 GPUs each (4 ranks per node)",
        "1 found",
        "1 would be large enough but others hold part of them",
        "b (8 CPUs and 4 GPUs, free 8 CPUs and 1 GPUs)",
        "c (8 CPUs, free 8 CPUs)",
    ):
        assert words in found.missing


def test_only_nodes_that_carry_all_labels_are_taken():
    nodes = [node("a", party="a"), node("b", party="b", free_cpus=1), node("both", party="a", site="x"), node("bare")]
    ask = Ask(2, 2, 2, 0, {"party": "a"})
    assert [chosen.name for chosen in plan(ask, nodes).nodes] == ["a", "both"]
    assert [chosen.name for chosen in plan(Ask(1, 2, 2, 0, {"site": "x", "party": "a"}), nodes).nodes] == ["both"]
    assert [chosen.name for chosen in plan(Ask(4, 1, 1, 0), nodes).nodes] == ["b", "a", "bare", "both"]


def test_labels_that_are_missing_are_told_with_those_that_there_are():
    nodes = [node("a", party="a"), node("b", party="b", site="x", free_cpus=1), node("c")]
    found = plan(Ask(1, 2, 2, 0, {"party": "z", "site": "y"}), nodes)
    assert found.missing == (
        "asked for 1 node(s) with 2 CPUs each (2 ranks per node) and the label(s) party=z, site=y; 0 found; no node carries party=z, site=y. The "
        "cluster has: a (8 CPUs, free 8 CPUs, party=a); b (8 CPUs, free 1 CPUs, party=b, site=x); c (8 CPUs, free 8 CPUs, no labels)"
    )
    busy = plan(Ask(1, 2, 2, 0, {"party": "b"}), nodes).missing
    assert "1 would be large enough but others hold part of them; 2 of 3 nodes do not carry party=b" in busy


def test_fractions_that_add_up():
    assert not plan(Ask(1, 10, 10 * 0.1, 0), [node("a", cpus=1)]).missing


@pytest.mark.parametrize(
    ("ask", "nodes", "remedy"),
    [
        (Ask(1, 4, 4.0, 0), [node("a", cpus=2)], "cluster.cpus_per_rank=0.5"),
        (Ask(1, 2, 2.0, 2), [node("a")], "cluster.gpus_per_rank=0"),
        (Ask(2, 2, 2.0, 0), [node("a")], "Lower cluster.nodes to 1"),
        (
            Ask(2, 2, 2.0, 0, {"party": "a", "b": "c"}),
            [node("a", party="a", b="c"), node("b"), node("c")],
            "Start 1 more node(s) with `ray start --labels=b=c,party=a`",
        ),
    ],
)
def test_more_than_the_cluster_can_ever_hold(ask, nodes, remedy):
    with pytest.raises(UserError, match="can never hold") as caught:
        check_ever_fits(ask, nodes)
    assert remedy in str(caught.value)


def test_what_is_busy_now_may_fit_later():
    check_ever_fits(Ask(1, 2, 2, 0), [node("a", free_cpus=0)])
