"""Cores of ranks: by NUMA node and physical core, none twice, none that are somebody else's; and processes that are really bound."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from zerofleet.cluster import binding
from zerofleet.cluster.binding import bind, parse_list, quota_cores, share_out, topology

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


def alone(*nodes):
    """NUMA nodes of cores without hyperthreads."""
    return [[(core,) for core in node] for node in nodes]


@pytest.mark.parametrize(
    ("text", "numbers"), [("0-3,8\n", {0, 1, 2, 3, 8}), ("5", {5}), ("\n", set()), ("0-1,4-5", {0, 1, 4, 5})]
)
def test_lists_of_the_kernel(text, numbers):
    assert parse_list(text) == numbers


PAIRS = [(0, 4), (1, 5), (2, 6), (3, 7)]


def test_cores_come_by_numa_node_and_physical_core(tmp_path):
    system = machine(tmp_path, ["0-1,4-5", "2-3,6-7"], PAIRS)
    assert topology(range(8), system) == [[(0, 4), (1, 5)], [(2, 6), (3, 7)]]
    assert topology([1, 5, 6], system) == [[(1, 5)], [(6,)]], "what a container or `taskset` leaves"
    assert topology([2, 3], system) == [[(2,), (3,)]], "a node of which nothing is left is none"


def test_nodes_are_ordered_by_number(tmp_path):
    system = machine(tmp_path, [str(number) for number in range(11)])
    assert topology(range(11), system) == alone(*([number] for number in range(11)))


def test_a_kernel_that_tells_nothing_has_one_node(tmp_path):
    assert topology([0, 1, 2], tmp_path) == alone([0, 1, 2])


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
        ([[0, 1], [2, 3]], 3, 2, []),
    ],
)
def test_each_rank_has_cores_of_its_own_of_one_node_where_it_can(nodes, num_ranks, num_threads, shares):
    assert share_out(alone(*nodes), num_ranks, num_threads) == shares


@pytest.mark.parametrize(
    ("num_ranks", "num_threads", "shares"),
    [
        (2, 1, [(0,), (2,)]),
        (4, 1, [(0,), (2,), (1,), (3,)]),
        (4, 2, [(0, 4), (2, 6), (1, 5), (3, 7)]),
        (2, 4, [(0, 4, 1, 5), (2, 6, 3, 7)]),
    ],
)
def test_ranks_share_no_physical_core_where_they_need_not(tmp_path, num_ranks, num_threads, shares):
    system = machine(tmp_path, ["0-1,4-5", "2-3,6-7"], PAIRS)
    assert share_out(topology(range(8), system), num_ranks, num_threads) == shares


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 8])
@pytest.mark.parametrize("num_threads", [1, 3, 4, 7])
def test_no_core_is_given_out_twice(num_nodes, num_threads):
    nodes = alone(*(range(16 * number, 16 * number + 16) for number in range(num_nodes)))
    shares = share_out(nodes, 16 * num_nodes // num_threads, num_threads)
    given = [core for share in shares for core in share]
    assert len(given) == len(set(given)) and all(len(share) == num_threads for share in shares)
    split = [share for share in shares if len({core // 16 for core in share}) > 1]
    assert len(split) <= len(shares) - num_nodes * (16 // num_threads), "only what no node has room for"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, float("inf")),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, float("inf")),
        ({}, float("inf")),
    ],
)
def test_quotas_of_containers(tmp_path, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert quota_cores(tmp_path) == cores


PROGRAM = """
import os, sys, threading
from zerofleet.cluster.binding import bind

before, found = os.sched_getaffinity(0), bind(int(sys.argv[1]), 2, 1, sys.argv[2])
print(*found.cores, found.why_not, flush=True)
seen = []
thread = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
thread.start()
thread.join()
assert seen == [os.sched_getaffinity(0)] == [set(found.cores) or before], (seen, found)
sys.stdin.read()
"""


def process(rank):
    command = [sys.executable, "-c", PROGRAM, str(rank), f"zerofleet-test/{os.getpid()}"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_system_that_does_not_let_it_is_told(monkeypatch):
    def refuse(process, cores):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(binding, "quota_cores", lambda: float("inf"))
    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    found = bind(0, 1, 1, f"zerofleet-test/refused-{os.getpid()}")
    assert found.cores == () and "Operation not permitted" in found.why_not and not found.is_of_node


@pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2 or quota_cores() < len(os.sched_getaffinity(0)), reason="needs two whole cores"
)
def test_processes_and_their_threads_are_bound_and_no_core_is_claimed_twice():
    with process(0) as first, process(1) as second:
        cores = [int(each.stdout.readline()) for each in (first, second)]
        assert len(set(cores)) == 2 and set(cores) <= os.sched_getaffinity(0)
        with process(0) as other:
            assert f"another run's rank keeps to core {cores[0]}" in other.stdout.readline()
            other.communicate()
            assert other.returncode == 0
        first.communicate()
        assert first.returncode == 0
        with process(0) as again:
            assert int(again.stdout.readline()) == cores[0], "a claim ends with its process"
