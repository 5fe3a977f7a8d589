"""Which node keeps whose replica. Pure: nodes and their failure domains in, a plan out.

The plan is a permutation of the nodes without fixed points: each node has one buddy and keeps one replica. As many replicas as
can be lie in another failure domain than their owner: all of them unless one domain has more than half of the nodes; with m of n
nodes in it, 2m - n replicas must stay inside.

- The nodes in order of their domains, rotated by the size m of the largest one: no domain reaches from a place to the one m
  further on, nor, where 2m <= n, round to itself. This is the whole plan when there is none before.
- With a plan before, its pairs stay; owners without a keeper and keepers without an owner are paired in the same way.
- A pair u -> v inside domain D is then mended by an exchange with a pair a -> b of which neither is in D: u -> b, a -> v. This is an
  augmenting path (Berge 1957, "Two theorems in graph theory"), and none need be longer: when every pair touches D, the nodes
  outside D have all their pairs with nodes in D, which is as many pairs across as there can be.

So, where no replica had to stay inside, one node's loss gives at most two survivors another buddy, and its replacement from the
same domain gives one to the owner of the lost replica alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_Domain = tuple[str, str]
"""(label, ""), or ("", node) for a node without a label, which is a domain of its own."""


@dataclass(frozen=True)
class Buddies:
    """`keepers`: node -> the node that keeps its replica, in the order the nodes were given; empty below two nodes."""

    keepers: dict[str, str]
    exposed: tuple[str, ...] = ()
    """Nodes whose replica could not be put into another failure domain."""

    @property
    def warning(self) -> str:
        """What a user should know of `exposed`; empty when there is none."""
        if not self.exposed:
            return ""
        rest = f" and {len(self.exposed) - 4} more" if len(self.exposed) > 4 else ""
        return (
            f"{len(self.exposed)} of {len(self.keepers)} nodes have their replica in their own failure domain ({', '.join(self.exposed[:4])}{rest}): "
            "more than half of the nodes are in it. If the domain is lost, the run goes on from storage; spread the nodes more evenly, "
            "or save to storage more often"
        )


def plan_buddies(domains: Mapping[str, str | None], before: Mapping[str, str] | None = None) -> Buddies:
    """`domains`: node -> its failure domain (a rack, a switch), None or "" where unknown, in the order of node ranks.
    `before`: the keepers of the plan that is in force, of which as much as can be is kept. About O(n log n).
    """
    if len(domains) < 2:
        return Buddies({})
    domain = {node: (label, "") if label else ("", node) for node, label in domains.items()}
    keepers = {
        node: keeper
        for node, keeper in (before or {}).items()
        if node in domain and keeper in domain and keeper != node
    }
    kept = set(keepers.values())
    assert len(kept) == len(keepers), "a node keeps two replicas"
    new = _rotated([n for n in domain if n not in keepers], [n for n in domain if n not in kept], domain)
    keepers = new | keepers  # the new ones first: an exchange with one of them costs nothing
    _mend(keepers, domain)
    exposed = tuple(node for node in domain if domain[node] == domain[keepers[node]])
    return Buddies({node: keepers[node] for node in domain}, exposed)


def _rotated(owners: list[str], free: list[str], domain: dict[str, _Domain]) -> dict[str, str]:
    """Pairs as many owners as keepers; most of them across domains, all that can be when the two lists are the same."""
    if not owners:
        return {}
    order = {name: number for number, name in enumerate(dict.fromkeys(domain.values()))}
    owners, free = (sorted(nodes, key=lambda node: order[domain[node]]) for nodes in (owners, free))
    ((_, largest),) = Counter(domain[node] for node in owners).most_common(1)
    shift = largest % len(owners) or 1  # one domain alone: a ring
    return dict(zip(owners, [*free[shift:], *free[:shift]], strict=True))


def _mend(keepers: dict[str, str], domain: dict[str, _Domain]) -> None:
    """Exchanges until no replica that can be elsewhere is inside its owner's domain, and no node is its own buddy."""
    hopeless: set[_Domain] = set()
    for node in [n for n, keeper in keepers.items() if domain[n] == domain[keeper]]:
        home = domain[node]
        if home != domain[keepers[node]]:
            continue  # an earlier exchange has mended it
        other = _outside(home, keepers, domain) if home not in hopeless else None
        if other is None:
            hopeless.add(home)
            if keepers[node] != node:
                continue
            other = next(n for n in keepers if n != node)  # loses no pair across domains: every pair touches `home`
        keepers[node], keepers[other] = keepers[other], keepers[node]


def _outside(home: _Domain, keepers: Mapping[str, str], domain: Mapping[str, _Domain]) -> str | None:
    """The owner of a pair that has nothing to do with a domain."""
    pairs: Iterable[tuple[str, str]] = keepers.items()
    return next((node for node, keeper in pairs if home not in (domain[node], domain[keeper])), None)
