"""How many nodes a run goes on with: it waits, shrinks, grows or gives up, and nodes that come and go do not make it resize for ever."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerofleet.cluster.policy.sizing import Gathered, Presence, Running, Sizes, at_boundary, gather

SIZES = Sizes(2, 8, 1, 8, 1, grace_s=20, placement_timeout_s=120, settle_s=60)
"""8 blocks of one sequence: 8, 4, 3, 2, 2, 2, 2, 1 micro-steps with 1 to 8 nodes."""


def test_a_run_starts_when_all_it_can_use_are_there():
    found = gather(SIZES, Gathered(0, ready=9, settled=0, since=0), 0)
    assert (found.action, found.nodes) == ("go on", 8)


@pytest.mark.parametrize(
    ("before", "ready", "waited_s", "action", "nodes"),
    [
        (8, 8, 0, "go on", 8),  # a spare took the place of the lost one
        (8, 7, 0, "wait", 0),
        (8, 7, 19.9, "wait", 0),
        (8, 7, 20, "go on", 7),
        (8, 2, 20, "go on", 2),
        (8, 1, 20, "wait", 0),
        (8, 1, 119.9, "wait", 0),
        (8, 1, 120, "fail", 0),
        (0, 5, 19.9, "wait", 0),
        (0, 5, 20, "go on", 5),
        (4, 4, 0, "go on", 4),
        (4, 7, 0, "go on", 4),  # 7 do not save a micro-step that 4 need
        (4, 8, 0, "go on", 8),  # an attempt begins anyway
    ],
)
def test_before_an_attempt(before, ready, waited_s, action, nodes):
    found = gather(SIZES, Gathered(before, ready, settled=ready, since=100), 100 + waited_s)
    assert (found.action, found.nodes) == (action, nodes)


def test_a_wait_says_until_when():
    assert gather(SIZES, Gathered(8, 7, 7, since=100), 101).until == 120
    assert gather(SIZES, Gathered(8, 1, 1, since=100), 101).until == 220


def test_a_node_that_has_just_come_replaces_but_does_not_make_larger():
    assert gather(SIZES, Gathered(4, ready=8, settled=3, since=0), 0).nodes == 4


def test_too_few_says_what_is_missing_in_numbers():
    found = gather(SIZES, Gathered(8, 1, 1, since=0, missing="asked for 2 node(s); 1 found"), 130)
    assert found.reason == (
        "1 nodes are there and the run needs at least 2, after 130.0 s (cluster.placement_timeout_s=120): asked for 2 node(s); 1 found"
    )


def test_a_shrink_says_what_it_costs():
    assert "8 of" not in (reason := gather(SIZES, Gathered(8, 5, 5, since=0), 25).reason)
    assert "5 of 8 nodes are there after 25.0 s" in reason and "1 -> 2 micro-steps" in reason


@pytest.mark.parametrize(
    ("min_nodes", "max_nodes", "ranks_per_node", "most"), [(1, 8, 1, 8), (1, 99, 1, 8), (1, 99, 3, 3), (12, 99, 1, 12)]
)
def test_no_more_nodes_than_there_are_blocks(min_nodes, max_nodes, ranks_per_node, most):
    sizes = replace(SIZES, min_nodes=min_nodes, max_nodes=max_nodes, ranks_per_node=ranks_per_node)
    assert sizes.most_nodes == most


@given(
    st.integers(1, 64), st.integers(1, 8), st.integers(1, 4), st.integers(1, 20), st.integers(0, 20), st.integers(0, 40)
)
@settings(deadline=None)
def test_any_size_it_chooses_is_allowed_and_none_is_wasteful(batch, micro, ranks, least, range_, ready):
    sizes = Sizes(least, least + range_, ranks, batch, micro, 10, 100)
    found = gather(sizes, Gathered(0, ready, ready, since=0), 50)
    if ready < least:
        assert found.action == "wait"
        return
    assert found.action == "go on" and least <= found.nodes <= min(ready, sizes.max_nodes)
    has_idle_node = (found.nodes - 1) * ranks * micro >= batch
    assert found.nodes == least or not has_idle_node
    larger = at_boundary(sizes, Running(found.nodes, 99, 10**9, 1, 1, 0, since=-(10.0**9)), 0)
    assert (larger.action == "grow") == (sizes.micro_steps(larger.nodes) < sizes.micro_steps(found.nodes))


FOUR = Running(4, settled=8, steps_left=1000, step_s=1.0, resize_s=10, steps_at_risk=5, since=0)
"""Growing to 8 halves the micro-steps and costs 15 s."""


@pytest.mark.parametrize(
    ("changes", "now", "nodes"),
    [
        ({}, 30, 8),
        ({}, 29, 4),  # has not lost as much by its size yet as growing costs
        ({"steps_left": 29}, 1000, 4),  # would not pay back
        ({"steps_left": 30}, 1000, 8),
        ({"settled": 7}, 1000, 4),  # as many micro-steps as with 4
        ({"settled": 4}, 1000, 4),
        ({"steps_at_risk": 25}, 69, 4),
        ({"steps_at_risk": 25}, 70, 8),
        ({"nodes": 3, "settled": 7}, 1000, 4),  # the fewest with 2 micro-steps
        ({"nodes": 8, "settled": 20}, 1000, 8),
    ],
)
def test_at_a_boundary(changes, now, nodes):
    run = replace(FOUR, **changes)
    found = at_boundary(SIZES, run, now)
    assert (found.action, found.nodes) == ("grow" if nodes != run.nodes else "go on", nodes)


def test_why_it_does_not_grow():
    assert "in 20 s, if they stay" in at_boundary(SIZES, FOUR, 10).reason
    assert (
        "would save 10 s of what is left and cost 15 s" in at_boundary(SIZES, replace(FOUR, steps_left=20), 99).reason
    )


def test_a_node_counts_when_it_has_settled_and_later_each_time_it_was_lost():
    presence = Presence(60)
    presence.look(["a", "b"], 0)
    assert presence.settled(59) == frozenset()
    assert presence.settled(60) == {"a", "b"}
    presence.look(["a"], 61)
    presence.look(["a", "b"], 62)
    assert presence.settled(62 + 119) == {"a"}
    assert presence.settled(62 + 120) == {"a", "b"}


def test_a_node_that_flaps_faster_than_it_settles_is_never_counted():
    presence = Presence(60)
    for second in range(10_000):
        presence.look(["a", "b"] if second % 50 < 45 else ["a"], second)
        assert "b" not in presence.settled(second)


def test_doubling_has_an_end():
    presence = Presence(1)
    for turn in range(100):
        presence.look(["a"] if turn % 2 else [], 0)
    assert presence.settled(64) == {"a"}


def test_a_node_that_has_lasted_is_forgiven():
    presence = Presence(1)
    for second in range(9):
        presence.look(["a"] if second % 2 == 0 else [], second)
    presence.look(["a"], 8)
    presence.look([], 8 + 159)
    presence.look(["a"], 200)
    assert presence.settled(200 + 31) == frozenset() and presence.settled(200 + 32) == {"a"}
    presence.look([], 200 + 320)
    presence.look(["a"], 600)
    assert presence.settled(601) == frozenset() and presence.settled(602) == {"a"}


@pytest.mark.parametrize("settle_s", [0, 10])
@pytest.mark.parametrize("seed", range(2))
def test_growing_never_costs_more_than_being_small_did(seed, settle_s):
    """Three hours in which two of four nodes come and go at random: the time spent on growing, and how often."""
    random_ = random.Random(seed)
    sizes = Sizes(2, 4, 1, 12, 1, grace_s=5, placement_timeout_s=120, settle_s=10)
    presence, up, nodes, since = Presence(settle_s), {"c": True, "d": True}, 4, 0.0
    resize_s, num_grown, num_back, small_s, grown_s = 20.0, 0, 0, 0.0, 0.0
    for now in range(3 * 3600):
        for name in up:
            if random_.random() < 1 / 90:
                up[name] = not up[name]
                num_back += up[name]
        alive = ["a", "b", *(name for name, is_up in up.items() if is_up)]
        presence.look(alive, now)
        small_s += 1 - sizes.micro_steps(4) / sizes.micro_steps(nodes)
        if len(alive) < nodes:
            nodes, since = len(alive), now
            continue
        run = Running(nodes, len(presence.settled(now)), 10**6, 1.0, resize_s, 0, since)
        found = at_boundary(sizes, run, now)
        if found.action == "grow":
            nodes, since, num_grown, grown_s = found.nodes, now, num_grown + 1, grown_s + resize_s
    assert grown_s <= small_s
    assert 0 < num_grown < (num_back / 3 if settle_s else num_back)
