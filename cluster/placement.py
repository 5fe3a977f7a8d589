"""Which nodes a run takes, or what is missing. Pure: numbers in, a plan or a sentence out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from zerofleet.cluster.config import ClusterConfig
from zerofleet.trainer.errors import UserError

_OWN_LABEL = "ray.io/node-id"


@dataclass(frozen=True)
class NodeResources:
    """One living node of a cluster."""

    node_id: str
    name: str
    cpus: float
    """What it has; `free_cpus` of them nobody holds."""
    gpus: float
    free_cpus: float
    free_gpus: float
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ask:
    """What a run needs: `nodes` nodes with at least this much each, and all of these labels."""

    nodes: int
    ranks_per_node: int
    cpus: float
    gpus: float
    labels: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(config: ClusterConfig) -> Ask:
        ranks = config.ranks_per_node
        return Ask(config.nodes, ranks, ranks * config.cpus_per_rank, ranks * config.gpus_per_rank, config.labels)

    def fits_free(self, node: NodeResources) -> bool:
        has_room = node.free_cpus >= self.cpus - 1e-6 and node.free_gpus >= self.gpus - 1e-6
        return has_room and self.may_take(node)

    def fits_ever(self, node: NodeResources) -> bool:
        has_room = node.cpus >= self.cpus - 1e-6 and node.gpus >= self.gpus - 1e-6
        return has_room and self.may_take(node)

    def may_take(self, node: NodeResources) -> bool:
        """Whether the node carries the labels, whatever else it carries."""
        return self.labels.items() <= node.labels.items()

    def __str__(self) -> str:
        amount = (
            f"{self.nodes} node(s) with {_amount(self.cpus, self.gpus)} each ({self.ranks_per_node} ranks per node)"
        )
        return f"{amount} and the label(s) {_labels(self.labels)}" if self.labels else amount


@dataclass(frozen=True)
class Plan:
    """Nodes by node rank; fewer than asked when something is missing, and then `missing` says what."""

    nodes: tuple[NodeResources, ...]
    missing: str = ""


def plan(ask: Ask, nodes: Sequence[NodeResources], taken: frozenset[str] = frozenset()) -> Plan:
    """The fullest nodes that fit come first, so that empty ones stay whole for others. Order is deterministic."""
    free = [node for node in nodes if node.node_id not in taken and ask.fits_free(node)]
    free.sort(key=lambda node: (node.free_gpus, node.free_cpus, node.name, node.node_id))
    chosen = tuple(free[: ask.nodes])
    if len(chosen) == ask.nodes:
        return Plan(chosen)
    return Plan(chosen, _missing(ask, nodes, len(chosen)))


def check_ever_fits(ask: Ask, nodes: Sequence[NodeResources]) -> None:
    """Raises UserError when a cluster of a fixed size can never hold the run, however long one waits."""
    fitting = [node for node in nodes if ask.fits_ever(node)]
    if len(fitting) >= ask.nodes:
        return
    raise UserError(
        f"the run asks for {ask} and the cluster can never hold it: {len(fitting)} of its {len(nodes)} node(s) are large enough. "
        f"It has: {_listed(ask, nodes)}. {_remedy(ask, nodes)}"
    )


def _missing(ask: Ask, nodes: Sequence[NodeResources], found: int) -> str:
    busy = sum(1 for node in nodes if ask.fits_ever(node) and not ask.fits_free(node))
    held = f"; {busy} would be large enough but others hold part of them" if busy else ""
    return f"asked for {ask}; {found} found{held}{_unlabelled(ask, nodes)}. The cluster has: {_listed(ask, nodes)}"


def _unlabelled(ask: Ask, nodes: Sequence[NodeResources]) -> str:
    """How many nodes are left out for their labels."""
    others = sum(not ask.may_take(node) for node in nodes)
    if not others:
        return ""
    who = "no node carries" if others == len(nodes) else f"{others} of {len(nodes)} nodes do not carry"
    return f"; {who} {_labels(ask.labels)}"


def _remedy(ask: Ask, nodes: Sequence[NodeResources]) -> str:
    ranks = ask.ranks_per_node
    labelled = [node for node in nodes if ask.may_take(node)]
    if len(labelled) < ask.nodes <= len(nodes):
        words = ",".join(f"{key}={value}" for key, value in sorted(ask.labels.items()))
        return f"Start {ask.nodes - len(labelled)} more node(s) with `ray start --labels={words}`, or change the labels"
    nodes = labelled
    largest = max((node.cpus for node in nodes), default=0.0)
    too_few_gpus = ask.gpus > max((node.gpus for node in nodes), default=0.0)
    if too_few_gpus:
        return "Lower cluster.ranks_per_node, or set cluster.gpus_per_rank=0 to train on CPUs"
    if ask.cpus > largest and largest > 0:
        share = math.floor(100 * largest / ranks) / 100
        return f"Lower cluster.ranks_per_node, or let ranks share cores with cluster.cpus_per_rank={share:g}"
    return f"Lower cluster.nodes to {len([n for n in nodes if ask.fits_ever(n)])}, or add nodes"


def _listed(ask: Ask, nodes: Sequence[NodeResources], most: int = 8) -> str:
    """The nodes, largest first; with their labels where it is asked for some."""
    if not nodes:
        return "no living node"
    ordered = sorted(nodes, key=lambda node: (-node.gpus, -node.cpus, node.name))
    lines = [
        f"{node.name} ({_amount(node.cpus, node.gpus)}, free {_amount(node.free_cpus, node.free_gpus)}"
        + (f", {_labels(node.labels)})" if ask.labels else ")")
        for node in ordered[:most]
    ]
    rest = len(ordered) - most
    return "; ".join([*lines, f"and {rest} more"] if rest > 0 else lines)


def _amount(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")


def _labels(labels: Mapping[str, str]) -> str:
    """As they are written on a command line; without those that Ray gives every node."""
    found = [f"{key}={value}" for key, value in sorted(labels.items()) if key != _OWN_LABEL]
    return ", ".join(found) or "no labels"
