"""Which cores of its node each CPU rank keeps to, where `cluster.bind_cores` asks for that.

A rank that is never moved finds its data in its cores' caches, and its memory, which the kernel takes from the NUMA node of the core that touches it first, beside
them. What a rank is given follows from the node and from how many ranks it has: nothing is agreed upon, and a restart finds the same.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from zerofleet.trainer.errors import UserError

_SYSTEM = Path("/sys/devices/system")


def bind(local_rank: int, num_ranks: int, num_threads: int) -> tuple[int, ...]:
    """Binds this thread, and all that it starts from now on, to the cores of a rank among the `num_ranks` of its node. Returns them.

    Raises UserError when the process may run on fewer cores than all ranks of the node need.
    """
    cores = share_out(topology(sorted(os.sched_getaffinity(0))), num_ranks, num_threads)[local_rank]
    os.sched_setaffinity(0, cores)
    return cores


def topology(allowed: Sequence[int], system: Path = _SYSTEM) -> list[list[int]]:
    """The allowed cores by NUMA node, as Linux tells them (Documentation/ABI/stable/sysfs-devices-node and
    sysfs-devices-system-cpu). Within a node one hyperthread of each physical core comes first, then their siblings: ranks share a physical core only when there are no others left."""
    nodes = [
        sorted(parse_list((folder / "cpulist").read_text()) & set(allowed))
        for folder in sorted(system.glob("node/node[0-9]*"), key=lambda folder: int(folder.name[4:]))
    ]
    known = {core for node in nodes for core in node}
    nodes.append([core for core in allowed if core not in known])  # a kernel without NUMA tells of no nodes
    return [sorted(node, key=lambda core: (_number_among_siblings(core, system), core)) for node in nodes if node]


def _number_among_siblings(core: int, system: Path) -> int:
    try:
        siblings = parse_list((system / f"cpu/cpu{core}/topology/thread_siblings_list").read_text())
    except OSError:  # virtual machines and sandboxes may hide it: then each counts as a core of its own
        return 0
    return sorted(siblings).index(core) if core in siblings else 0


def parse_list(text: str) -> set[int]:
    """Numbers of the kernel's list format: `0-3,8`."""
    ranges = [part.partition("-") for part in text.strip().split(",") if part]
    return {number for first, _, last in ranges for number in range(int(first), int(last or first) + 1)}


def share_out(nodes: Sequence[Sequence[int]], num_ranks: int, num_threads: int) -> list[tuple[int, ...]]:
    """For each of `num_ranks` ranks `num_threads` cores of its own, from one NUMA node where one has as many left: the one with the most.

    `nodes` are the cores of each NUMA node in the order in which they are given out. Raises UserError when there are too few.
    """
    left = [list(cores) for cores in nodes]
    if (found := sum(map(len, left))) < (needed := num_ranks * num_threads):
        raise UserError(
            f"cluster.bind_cores=true: {num_ranks} ranks with {num_threads} cores each need {needed} cores of this node, and its processes may "
            f"run on {found}: lower cluster.ranks_per_node or cluster.cpus_per_rank, or set cluster.bind_cores=false"
        )
    shares = []
    for _ in range(num_ranks):
        share: list[int] = []
        while len(share) < num_threads:
            most = max(left, key=len)
            taken = num_threads - len(share)
            share += most[:taken]
            del most[:taken]
        shares.append(tuple(share))
    return shares
