"""Buddies: a permutation without fixed points, across failure domains where that can be, and little changes when a node does."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from zerofleet.cluster.policy.buddies import Buddies, plan_buddies

Domains = dict[str, str | None]

labels = st.lists(st.sampled_from([None, "a", "b", "c", "d"]), min_size=2, max_size=12)


def nodes(found: list[str | None]) -> Domains:
    return {f"n{number}": label for number, label in enumerate(found)}


def least_exposed(domains: Domains) -> int:
    """2m - n replicas must stay in the domain of m nodes, when that is more than half of all."""
    sizes = Counter(label for label in domains.values() if label)
    return max(0, 2 * max(sizes.values(), default=0) - len(domains))


def check(domains: Domains, plan: Buddies) -> None:
    assert list(plan.keepers) == list(domains)
    assert sorted(plan.keepers.values()) == sorted(domains)
    assert not [node for node, keeper in plan.keepers.items() if node == keeper]
    inside = [n for n, keeper in plan.keepers.items() if domains[n] and domains[n] == domains[keeper]]
    assert plan.exposed == tuple(inside)
    assert len(inside) == least_exposed(domains)


def changed(before: Buddies, after: Buddies) -> int:
    """Survivors that got another buddy."""
    return sum(after.keepers[node] != keeper for node, keeper in before.keepers.items() if node in after.keepers)


@pytest.mark.parametrize("domains", [{}, {"a": None}, {"a": "rack"}])
def test_fewer_than_two_nodes_have_no_buddy(domains):
    assert plan_buddies(domains) == Buddies({})


def test_two_nodes_keep_each_other_s():
    assert plan_buddies({"a": None, "b": None}).keepers == {"a": "b", "b": "a"}


def test_nodes_without_labels_make_a_ring():
    assert plan_buddies({"a": None, "b": "", "c": None}).keepers == {"a": "b", "b": "c", "c": "a"}


def test_racks_keep_each_other_s():
    plan = plan_buddies({"a0": "a", "a1": "a", "b0": "b", "b1": "b"})
    assert plan.keepers == {"a0": "b0", "a1": "b1", "b0": "a0", "b1": "a1"}
    assert plan.warning == ""


@settings(deadline=None)
@given(labels)
@example(["a", "a", "b"])
@example(["a", "a"])
def test_a_plan_of_any_nodes(found):
    domains = nodes(found)
    check(domains, plan_buddies(domains))


@settings(deadline=None)
@given(labels, st.data())
def test_a_plan_after_any_plan(found, data):
    """Whatever was in force before: nodes that are gone, nodes that are new, labels that changed."""
    before = data.draw(labels.map(nodes))
    domains = nodes(found)
    names = data.draw(st.permutations(list(domains)))
    domains = {name: domains[name] for name in names}
    check(domains, plan_buddies(domains, plan_buddies(before).keepers))


@settings(deadline=None)
@given(labels)
def test_a_plan_that_holds_is_left_alone(found):
    plan = plan_buddies(nodes(found))
    assert plan_buddies(nodes(found), plan.keepers) == plan


@settings(deadline=None)
@given(labels.filter(lambda found: len(found) > 2), st.data())
def test_one_node_s_loss_changes_little(found, data):
    domains = nodes(found)
    before = plan_buddies(domains)
    lost = data.draw(st.sampled_from(sorted(domains)))
    left = {node: label for node, label in domains.items() if node != lost}
    after = plan_buddies(left, before.keepers)
    check(left, after)
    assert changed(before, after) <= (
        4 if before.exposed else 2
    )  # two more when one that was exposed can now be mended


@settings(deadline=None)
@given(labels, st.data())
def test_a_replacement_from_the_same_domain_changes_the_lost_node_s_pairs_only(found, data):
    domains = nodes(found)
    before = plan_buddies(domains)
    lost = data.draw(st.sampled_from(sorted(domains)))
    replaced = {("new" if node == lost else node): label for node, label in domains.items()}
    after = plan_buddies(replaced, before.keepers)
    check(replaced, after)
    if not before.exposed:
        assert changed(before, after) == 1
        assert after.keepers["new"] == before.keepers[lost]


def test_what_cannot_be_is_said_in_numbers():
    plan = plan_buddies(nodes(["a"] * 6 + ["b"]))
    assert len(plan.exposed) == 5
    assert plan.warning.startswith("5 of 7 nodes have their replica in their own failure domain")
    assert "and 1 more" in plan.warning


def test_1250_nodes_in_racks_and_their_losses():
    """One rack after another is lost and replaced by nodes of its own rack: every plan is whole, and each changes no more than it must."""
    random_ = random.Random(0)
    domains = nodes([f"rack{number // 8}" for number in range(1250)])
    plan = plan_buddies(domains)
    check(domains, plan)
    for _ in range(5):
        rack = f"rack{random_.randrange(150)}"
        left = {node: label for node, label in domains.items() if label != rack}
        smaller = plan_buddies(left, plan.keepers)
        check(left, smaller)
        assert changed(plan, smaller) <= 16
        again = plan_buddies(domains, smaller.keepers)
        check(domains, again)
        assert changed(smaller, again) <= 16
        plan = again
