"""Which cores of its node each CPU rank keeps to, where `cluster.bind_cores` asks for that.

A rank that is never moved finds its data in its cores' caches, and its memory, which the kernel takes from the NUMA node of the core that touches it first, beside
them. What a rank is given follows from the node and from how many ranks it has: nothing is agreed upon, and a restart finds the same. Where cores are somebody else's, a rank runs
unbound: two that keep to the same ones would halve each other's speed while others idle.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SYSTEM = Path("/sys/devices/system")
_CGROUP = Path("/sys/fs/cgroup")
_CLAIMS: list[socket.socket] = []
"""For the life of the process."""
Group = tuple[int, ...]
"""Hyperthreads of one physical core."""


@dataclass(frozen=True)
class Binding:
    """What became of a rank's wish."""

    cores: tuple[int, ...]
    why_not: str = ""
    """Where it has none: what has to be mended."""
    is_of_node: bool = True
    """Whether that holds for all ranks of its node."""


def bind(local_rank: int, num_ranks: int, num_threads: int, claims: str = "zerofleet/core") -> Binding:
    """Binds this thread, and all that it starts from now on, to the cores of a rank among the `num_ranks` of its node, unless another process keeps to one of them:
    whoever uses the same name for his `claims` knows."""
    allowed = sorted(os.sched_getaffinity(0))
    if (quota := quota_cores()) < len(allowed):
        why = f"its container may use {quota:g} cores of any {len(allowed)}, which are others' too: give it whole cores (a static CPU manager, `--cpuset-cpus`)"
        return Binding((), why)
    try:
        shares = share_out(topology(allowed), num_ranks, num_threads)
        if not shares:
            return Binding(
                (),
                f"{num_ranks} ranks with {num_threads} cores each do not fit onto the {len(allowed)} cores that they may use",
            )
        if (taken := _claim(shares[local_rank], claims)) is not None:
            return Binding(
                (), f"another run's rank keeps to core {taken}: bind one run only on a host", is_of_node=False
            )
        os.sched_setaffinity(0, shares[local_rank])
    except OSError as error:
        return Binding((), f"the system does not let it: {error}", is_of_node=False)
    return Binding(shares[local_rank])


def _claim(cores: Sequence[int], name: str) -> int | None:
    """Takes them for this process, by abstract sockets, which need no file and end with it. None, or the core that is somebody's (of this network namespace)."""
    with contextlib.ExitStack() as stack:
        claims = []
        for core in cores:
            claims.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
            try:
                claims[-1].bind(f"\0{name}/{core}")
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return core
                raise
        stack.pop_all()
    _CLAIMS.extend(claims)
    return None


def quota_cores(cgroup: Path = _CGROUP) -> float:
    """How many cores' time the container may use, whichever they are (cgroup v2 `cpu.max`, v1 `cpu.cfs_quota_us`); infinite without a limit."""
    try:
        if (file := cgroup / "cpu.max").exists():
            quota, period = file.read_text().split()
        else:
            quota, period = ((cgroup / f"cpu/cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return float("inf") if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError):  # no such limit here, or a kernel that tells it otherwise
        return float("inf")


def topology(allowed: Sequence[int], system: Path = _SYSTEM) -> list[list[Group]]:
    """The allowed cores by NUMA node and physical core, as Linux tells them (Documentation/ABI/stable/sysfs-devices-node and
    sysfs-devices-system-cpu)."""
    nodes = [
        sorted(parse_list((folder / "cpulist").read_text()) & set(allowed))
        for folder in sorted(system.glob("node/node[0-9]*"), key=lambda folder: int(folder.name[4:]))
    ]
    known = {core for node in nodes for core in node}
    nodes.append([core for core in allowed if core not in known])  # a kernel without NUMA tells of no nodes
    return [sorted({_siblings(core, system, node) for core in node}) for node in nodes if node]


def _siblings(core: int, system: Path, node: Sequence[int]) -> Group:
    try:
        siblings = parse_list((system / f"cpu/cpu{core}/topology/thread_siblings_list").read_text())
    except OSError:  # virtual machines and sandboxes may hide it: then each counts as a core of its own
        siblings = set()
    return tuple(sorted({core} | (siblings & set(node))))


def parse_list(text: str) -> set[int]:
    """Numbers of the kernel's list format: `0-3,8`."""
    ranges = [part.partition("-") for part in text.strip().split(",") if part]
    return {number for first, _, last in ranges for number in range(int(first), int(last or first) + 1)}


def share_out(nodes: Sequence[Sequence[Group]], num_ranks: int, num_threads: int) -> list[tuple[int, ...]]:
    """For each of `num_ranks` ranks `num_threads` cores of its own, from one NUMA node where one has as many left: the one with the most. Empty: there are too few.

    `nodes` are the physical cores of each NUMA node. One hyperthread of each is given out where that is enough, else all of one physical core after the other, so
    that as few as can be have two ranks.
    """
    needed = num_ranks * num_threads
    is_enough = needed <= sum(map(len, nodes))
    left = [[core for group in groups for core in (group[:1] if is_enough else group)] for groups in nodes]
    if sum(map(len, left)) < needed:
        return []
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
