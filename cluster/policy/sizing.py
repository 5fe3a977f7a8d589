"""How many nodes a run goes on with, between its least and its most. Pure: numbers and a clock in, a decision with its reason out.

Any number of nodes serves the global batch; what more of them buy is fewer micro-steps per step. So nothing beyond one block per
rank is taken, and the run grows only where that saves a micro-step, to the fewest nodes that do (the others stay spares). It
shrinks to all that are left: with fewer, a rank might not hold its partition.

Without a node a run waits `grace_s` for another: going on costs a resize now and one more when the node is back, so a wait of about
twice what a resize takes is never more than twice the best that could have been done. The same argument (rent or buy: Karlin,
Manasse, Rudolph and Sleator 1988, "Competitive snoopy caching") says when to grow: once the run has lost, by its present size, as
much time as the resize costs. So resizes never cost more than being small did, however often nodes come and go; and none is made
that the steps left would not pay back.

A node that comes and goes counts for growing only after it has been there for `settle_s`, twice as long for every time that it was
lost, until it has stayed LASTING times as long as it had to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from zerofleet.trainer.batch import BatchPlan

MOST_DOUBLINGS = 6
"""Of the time that a node which was lost again and again has to stay: 64 x settle_s."""
LASTING = 10


@dataclass(frozen=True)
class Sizes:
    """What a run may have. Times in seconds."""

    min_nodes: int
    max_nodes: int
    ranks_per_node: int
    global_batch_size: int
    micro_batch_size: int
    grace_s: float
    """How long a lost node is waited for while enough are left to go on without it."""
    placement_timeout_s: float
    """How long too few nodes are waited for."""
    settle_s: float = 60.0
    """How long a node must have been there before the run grows because of it."""

    def __post_init__(self) -> None:
        assert 1 <= self.min_nodes <= self.max_nodes

    def micro_steps(self, nodes: int) -> int:
        """Per step and rank."""
        return self._plan(nodes).gradient_accumulation_steps

    @property
    def most_nodes(self) -> int:
        """Nodes that can be of use: with more than a block per rank's worth, ranks compute nothing but padding."""
        needed = -(-self._plan(1).num_blocks // self.ranks_per_node)
        return max(self.min_nodes, min(self.max_nodes, needed))

    def fewest_as_fast(self, nodes: int) -> int:
        """The fewest nodes with which a step has no more micro-steps than with `nodes`."""
        most = self.micro_steps(nodes)
        return next(n for n in range(self.min_nodes, nodes + 1) if self.micro_steps(n) <= most)

    def _plan(self, nodes: int) -> BatchPlan:
        return BatchPlan.of(self.global_batch_size, self.micro_batch_size, nodes * self.ranks_per_node)


@dataclass(frozen=True)
class Decision:
    """`go on` and `grow`: with `nodes` nodes. `wait`: until `until` (the clock that was given) at the latest."""

    action: Literal["wait", "go on", "grow", "fail"]
    reason: str
    nodes: int = 0
    until: float = 0.0


@dataclass(frozen=True)
class Gathered:
    """The nodes of a run whose ranks stand still."""

    before: int
    """Nodes that the last attempt had; 0 at the run's start."""
    ready: int
    """Nodes whose agents are up, spares included."""
    settled: int
    """Those of them that have been there for long enough: `Presence.settled`."""
    since: float
    """Since when nodes are asked for."""
    missing: str = ""
    """What the cluster lacks, in words."""


def gather(sizes: Sizes, nodes: Gathered, now: float) -> Decision:
    """Before an attempt: whether to start it, with how many nodes, or to wait for more, or to give up."""
    wanted = min(nodes.before, sizes.most_nodes) or sizes.most_nodes
    if nodes.ready >= wanted:
        return _with_all(sizes, nodes, wanted)
    waited_s = now - nodes.since
    short = f"{nodes.ready} of {wanted} nodes are there"
    if nodes.ready >= sizes.min_nodes:
        if waited_s < sizes.grace_s:
            reason = f"{short}: waiting for another for up to {sizes.grace_s:g} s"
            return Decision("wait", reason, until=nodes.since + sizes.grace_s)
        steps = f"{sizes.micro_steps(wanted)} -> {sizes.micro_steps(nodes.ready)} micro-steps per step"
        return Decision("go on", f"{short} after {waited_s:.1f} s: going on with them ({steps})", nodes.ready)
    too_few = f"{nodes.ready} nodes are there and the run needs at least {sizes.min_nodes}"
    if waited_s < sizes.placement_timeout_s:
        return Decision("wait", too_few, until=nodes.since + sizes.placement_timeout_s)
    reason = f"{too_few}, after {waited_s:.1f} s (cluster.placement_timeout_s={sizes.placement_timeout_s:g})"
    return Decision("fail", f"{reason}: {nodes.missing}" if nodes.missing else reason)


def _with_all(sizes: Sizes, nodes: Gathered, wanted: int) -> Decision:
    """An attempt begins anyway, so growing costs nothing."""
    larger = min(nodes.settled, nodes.ready, sizes.most_nodes)
    if nodes.before and larger > wanted and sizes.micro_steps(larger) < sizes.micro_steps(wanted):
        grown = sizes.fewest_as_fast(larger)
        return Decision("go on", f"{nodes.ready} nodes are there: going on with {grown} instead of {wanted}", grown)
    return Decision("go on", f"all {wanted} nodes are there", wanted)


@dataclass(frozen=True)
class Running:
    """A run that trains, at the moment that a step of it was committed."""

    nodes: int
    settled: int
    """Nodes that it could have, its own included, which have been there for long enough: `Presence.settled`."""
    steps_left: int
    step_s: float
    """Median seconds of a step."""
    resize_s: float
    """Seconds from the end of the old ranks to the first new step: what the last recovery took."""
    steps_at_risk: int
    """Steps done since the one that was committed: they would be run again."""
    since: float
    """Since when it has had this size."""


def at_boundary(sizes: Sizes, run: Running, now: float) -> Decision:
    """At a checkpoint boundary: whether to `grow` now, or to `go on` as it is."""
    stay = Decision("go on", "no larger size would be faster", run.nodes)
    largest = min(run.settled, sizes.most_nodes)
    if largest <= run.nodes or sizes.micro_steps(largest) >= sizes.micro_steps(run.nodes):
        return stay
    nodes = sizes.fewest_as_fast(largest)
    before, after = sizes.micro_steps(run.nodes), sizes.micro_steps(nodes)
    saved = 1 - after / before
    cost_s = run.resize_s + run.steps_at_risk * run.step_s
    left_s, lost_s = run.steps_left * run.step_s, now - run.since
    what = f"{nodes} nodes instead of {run.nodes} ({before} -> {after} micro-steps per step)"
    if saved * left_s < cost_s:
        return Decision(
            "go on", f"{what} would save {saved * left_s:.0f} s of what is left and cost {cost_s:.0f} s", run.nodes
        )
    if saved * lost_s < cost_s:
        return Decision("go on", f"{what}: in {cost_s / saved - lost_s:.0f} s, if they stay", run.nodes)
    return Decision("grow", f"{what}: saves {saved * left_s:.0f} s of what is left for {cost_s:.0f} s", nodes)


class Presence:
    """Since when each node has been there, by its name: a node that comes back may have another id."""

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s
        self._since: dict[str, float] = {}
        self._losses: dict[str, int] = {}

    def look(self, names: Iterable[str], now: float) -> None:
        """These nodes are alive."""
        alive = set(names)
        for name in self._since.keys() - alive:
            has_lasted = now - self._since.pop(name) >= LASTING * self._needed_s(name)
            self._losses[name] = 1 if has_lasted else self._losses.get(name, 0) + 1
        for name in alive:
            self._since.setdefault(name, now)

    def settled(self, now: float) -> frozenset[str]:
        """The nodes that have been there for long enough."""
        return frozenset(name for name, since in self._since.items() if now - since >= self._needed_s(name))

    def _needed_s(self, name: str) -> float:
        return self._settle_s * 2.0 ** min(self._losses.get(name, 0), MOST_DOUBLINGS)
