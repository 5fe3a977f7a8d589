"""Cores of ranks: by NUMA node, physical cores first, none twice; and a process that is really bound."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from zerofleet.cluster.binding import parse_list, share_out, topology
from zerofleet.trainer.errors import UserError

pytestmark = pytest.mark.timeout(30)


def machine(root, nodes, siblings=()):
    """A sysfs of NUMA nodes (lists of cores) and pairs of hyperthreads."""
    for number, cores in enumerate(nodes):
        folder = root / f"node/node{number}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(cores + "\n")
    for pair in siblings:
        for core in pair:
            folder = root / f"cpu/cpu{core}/topology"
            folder.mkdir(parents=True)
            (folder / "thread_siblings_list").write_text(",".join(map(str, pair)) + "\n")
    return root


@pytest.mark.parametrize(
    ("text", "numbers"), [("0-3,8\n", {0, 1, 2, 3, 8}), ("5", {5}), ("\n", set()), ("0-1,4-5", {0, 1, 4, 5})]
)
def test_lists_of_the_kernel(text, numbers):
    assert parse_list(text) == numbers


def test_cores_come_by_numa_node_and_physical_cores_first(tmp_path):
    pairs = [(0, 4), (1, 5), (2, 6), (3, 7)]
    system = machine(tmp_path, ["0-1,4-5", "2-3,6-7"], pairs)
    assert topology(range(8), system) == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert topology([1, 5, 6], system) == [[1, 5], [6]], "what a container or `taskset` leaves"
    assert topology([2, 3], system) == [[2, 3]], "a node of which nothing is left is none"


def test_nodes_are_ordered_by_number(tmp_path):
    system = machine(tmp_path, [str(number) for number in range(11)])
    assert topology(range(11), system) == [[number] for number in range(11)]


def test_a_kernel_that_tells_nothing_has_one_node(tmp_path):
    assert topology([0, 1, 2], tmp_path) == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("nodes", "num_ranks", "num_threads", "shares"),
    [
        ([[0, 1]], 2, 1, [(0,), (1,)]),
        ([[0, 1, 2, 3], [4, 5, 6, 7]], 2, 2, [(0, 1), (4, 5)]),
        ([[0, 1, 2, 3], [4, 5, 6, 7]], 2, 4, [(0, 1, 2, 3), (4, 5, 6, 7)]),
        ([[0, 1, 2, 3], [4, 5, 6, 7]], 4, 2, [(0, 1), (4, 5), (2, 3), (6, 7)]),
        ([[0], [1, 2, 3]], 1, 2, [(1, 2)]),
        ([[0, 1, 2], [3, 4, 5]], 3, 2, [(0, 1), (3, 4), (2, 5)]),
        ([[0, 1], [2, 3]], 1, 3, [(0, 1, 2)]),
    ],
)
def test_each_rank_has_cores_of_its_own_of_one_node_where_it_can(nodes, num_ranks, num_threads, shares):
    assert share_out(nodes, num_ranks, num_threads) == shares


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 8])
@pytest.mark.parametrize("num_threads", [1, 3, 4, 7])
def test_no_core_is_given_out_twice(num_nodes, num_threads):
    nodes = [list(range(16 * number, 16 * number + 16)) for number in range(num_nodes)]
    shares = share_out(nodes, 16 * num_nodes // num_threads, num_threads)
    given = [core for share in shares for core in share]
    assert len(given) == len(set(given)) and all(len(share) == num_threads for share in shares)
    split = [share for share in shares if len({core // 16 for core in share}) > 1]
    assert len(split) <= len(shares) - num_nodes * (16 // num_threads), "only what no node has room for"


def test_too_few_cores_are_told():
    with pytest.raises(
        UserError, match="3 ranks with 2 cores each need 6 cores of this node, and its processes may run on 4"
    ):
        share_out([[0, 1], [2, 3]], 3, 2)


PROGRAM = """
import os, sys, threading
from zerofleet.cluster.binding import bind

cores = bind(int(sys.argv[1]), 2, 1)
found = []
thread = threading.Thread(target=lambda: found.append(os.sched_getaffinity(0)))
thread.start()
thread.join()
assert found == [os.sched_getaffinity(0)] == [set(cores)], (found, cores)
print(*cores)
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_process_and_its_threads_are_bound():
    done = [
        subprocess.run([sys.executable, "-c", PROGRAM, str(rank)], capture_output=True, text=True, check=False)
        for rank in range(2)
    ]
    assert [each.returncode for each in done] == [0, 0], [each.stderr for each in done]
    first, second = (int(each.stdout) for each in done)
    assert first != second and {first, second} <= os.sched_getaffinity(0)
