"""What was found on a Ray cluster, held against what a run needs. Pure: values in, a decision or a UserError out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from zerofleet.cluster.placement import Ask, NodeResources
from zerofleet.launch.backends.package import requirements
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.sizing.node import Node

_MOST_NAMED = 5


@dataclass(frozen=True)
class Needs:
    """What zerofleet runs on, and the code that is here."""

    ray: SpecifierSet
    python: SpecifierSet
    zerofleet: str
    digest: str
    """Of the code (cluster/probe.py): a version alone does not tell two checkouts apart."""

    @staticmethod
    def ours(version: str, digest: str) -> Needs:
        """From zerofleet's own metadata."""
        pins = [Requirement(text) for text in requirements()]
        ray = next((pin.specifier for pin in pins if pin.name == "ray"), SpecifierSet())
        python = metadata.metadata("zerofleet")["Requires-Python"]
        return Needs(ray, SpecifierSet(python), version, digest)


@dataclass(frozen=True)
class NodeFound:
    """One node of the cluster. `error`: why it could not be looked at; then the rest is empty."""

    resources: NodeResources
    python: str = ""
    zerofleet: str = ""
    digest: str = ""
    unmet: tuple[str, ...] = ()
    sees_storage: bool = True
    storage_error: str = ""
    memory_bytes: int = 0
    shm_bytes: int = 0
    gpu_memory_bytes: int = 0
    """Of the GPU that has least; 0 where that is not known."""
    error: str = ""


@dataclass(frozen=True)
class ClusterFound:
    """A cluster as its nodes told it."""

    ray: str
    nodes: tuple[NodeFound, ...]

    @staticmethod
    def from_answer(answer: dict[str, Any]) -> ClusterFound:
        """The nodes by their names."""
        nodes = map(_node, sorted(answer["nodes"], key=lambda facts: (facts["name"], facts["node_id"])))
        return ClusterFound(answer["ray"], tuple(nodes))


def _node(facts: dict[str, Any]) -> NodeFound:
    amounts = {name: float(facts[name]) for name in ("cpus", "gpus", "free_cpus", "free_gpus")}
    seen = {key: facts[key] for key in NodeFound.__dataclass_fields__ if key in facts}
    return NodeFound(
        NodeResources(facts["node_id"], facts["name"], **amounts, labels=facts.get("labels", {})),
        **(seen | {"unmet": tuple(facts.get("unmet", ()))}),
    )


def check_ray(version: str, needs: Needs, address: str) -> None:
    """Before anything runs there. Raises UserError."""
    if version not in needs.ray:
        raise UserError(
            f"the cluster at {address} runs Ray {version} and zerofleet {needs.zerofleet} needs Ray {needs.ray} (Python "
            f"{needs.python}): use an image with that Ray, or a zerofleet that is made for the cluster's"
        )


@dataclass(frozen=True)
class Problem:
    """Something that keeps a run from the cluster: what it concerns, what is wrong, and what to do."""

    what: Literal["python", "packages", "storage", "nodes"]
    text: str


def problems(found: ClusterFound, needs: Needs, storage: str) -> Iterator[Problem]:
    """All of them; none where the run can go there. `storage` names the place of the run folders."""
    looked_at = [node for node in found.nodes if not node.error]
    if silent := [node for node in found.nodes if node.error]:
        yield Problem(
            "nodes", f"{_named(silent)} could not be looked at ({silent[0].error}): mend or remove what is broken there"
        )
    if wrong := [node for node in looked_at if node.python not in needs.python]:
        yield Problem(
            "python",
            f"there is Ray {found.ray}, Python {wrong[0].python} and {_zerofleet(wrong[0])} on {_named(wrong)}; zerofleet "
            f"{needs.zerofleet} needs Ray {needs.ray} and Python {needs.python}: use an image with such a Python",
        )
    elif lacking := [node for node in looked_at if node.unmet]:
        yield Problem(
            "packages",
            f"{_named(lacking)}: {'; '.join(lacking[0].unmet[:_MOST_NAMED])} (there is Ray {found.ray}, Python {lacking[0].python} and "
            f"{_zerofleet(lacking[0])}): install zerofleet[train] {needs.zerofleet} into the "
            "cluster's image. Code alone can be sent along, its dependencies cannot",
        )
    if blind := [node for node in looked_at if not node.sees_storage]:
        why = f" ({blind[0].storage_error})" if blind[0].storage_error else ""
        yield Problem(
            "storage",
            f"run.storage={storage!r} is not seen by {_named(blind)}{why}: the run folder must be the same for this machine and for every "
            "node. Set run.storage to a shared folder that all mount under one path, or to an object store (s3://...) whose "
            "credentials the nodes have",
        )


def judge(found: ClusterFound, needs: Needs, storage: str) -> bool:
    """Whether the code has to be sent along: where a node has none, or other code than is here. Raises UserError."""
    if errors := [problem.text for problem in problems(found, needs, storage)]:
        raise UserError(errors[0] if len(errors) == 1 else "".join(f"\n  - {error}" for error in errors))
    return any(node.digest != needs.digest for node in found.nodes)


def planned_for(found: ClusterFound, ask: Ask) -> Node | None:
    """The node that a job's plan is of: of those that can take its ranks as many as it asks for, the ones with most memory, and of these the one with least. None: there are too few."""
    fitting = [node for node in found.nodes if not node.error and ask.fits_ever(node.resources)]
    if len(fitting) < ask.nodes:
        return None
    node = sorted(fitting, key=lambda node: node.memory_bytes, reverse=True)[ask.nodes - 1]
    has = node.resources
    return Node(f"node {has.name}", has.cpus, node.memory_bytes, node.shm_bytes, int(has.gpus), node.gpu_memory_bytes)


def described_code(found: ClusterFound, needs: Needs, is_sent: bool) -> str:
    """One line for the user: which code will run."""
    if not is_sent:
        return f"code: zerofleet {needs.zerofleet} as the cluster has it"
    others = sorted({_zerofleet(node) for node in found.nodes if node.digest != needs.digest})
    return f"code: zerofleet {needs.zerofleet} is sent from here, since the cluster has {' and '.join(others)}"


def _zerofleet(node: NodeFound) -> str:
    return f"zerofleet {node.zerofleet} (code {node.digest[:8]})" if node.digest else "no zerofleet"


def _named(nodes: Sequence[NodeFound]) -> str:
    names = ", ".join(node.resources.name for node in nodes[:_MOST_NAMED])
    return (
        f"node {names}"
        if len(nodes) == 1
        else f"nodes {names}" + (f" and {len(nodes) - _MOST_NAMED} more" if len(nodes) > _MOST_NAMED else "")
    )
