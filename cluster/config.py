"""How many nodes and ranks a job takes, and how long to wait for what. Imports neither torch nor ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from zerofleet.trainer.config import NonNegativeInt, PositiveFloat, PositiveInt, Section
from zerofleet.trainer.errors import NotFoundError, UserError, ZerofleetError
from zerofleet.trainer.lint import Finding

__all__ = [
    "Check",
    "ClusterConfig",
    "Finding",
    "NonNegativeInt",
    "NotFoundError",
    "PositiveFloat",
    "PositiveInt",
    "Section",
    "UserError",
    "ZerofleetError",
]
"""What `k8s` knows of the other packages it knows from here."""

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
NodeLabels = dict[
    Annotated[str, Field(pattern=rf"^([a-z0-9]([a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_LABEL}$")],
    Annotated[str, Field(pattern=f"^{_LABEL}$")],
]
"""Plain ones: Ray's selectors have operators too, such as `!x` and `in(x, y)`."""


@dataclass(frozen=True)
class Check:
    """One line of what `doctor` reports. `text` ends with the remedy unless `level` is ok."""

    level: Literal["ok", "warn", "fail"]
    name: str
    text: str


NonNegativeFloat = Annotated[float, Field(ge=0)]


class ClusterConfig(Section):
    address: str = ""
    """`host:port` of the head of a Ray cluster to run on. Empty: the run brings up a Ray of its own on this machine."""
    labels: NodeLabels = Field(default_factory=dict)
    """Labels that each of the run's nodes must carry (`ray start --labels=KEY=VALUE`), of a cluster that the run joins."""
    nodes: PositiveInt = 1
    """Nodes of the run, at most; one node agent each."""
    min_nodes: NonNegativeInt = 0
    """Fewest nodes that the run goes on with when some are lost, or begins with; it grows again when they are back. 0: as many as `nodes`."""
    replace_timeout_s: PositiveFloat = 30.0
    """Seconds to wait for another node in the place of a lost one, before the run goes on with those that are left."""
    ranks_per_node: PositiveInt = 2
    """Ranks (processes) per node; with GPUs, one per GPU."""
    cpus_per_rank: PositiveFloat = 1.0
    """CPU cores reserved per rank; may be a fraction."""
    bind_cores: bool = False
    """Whether each CPU rank keeps to cores of its own (`cpus_per_rank` of them, at least one), of one NUMA node where it can. For nodes that the run has to itself: ranks whose cores another run has taken, or that a container's quota gives no cores of their own, run unbound, and the run says so; containers of one host do not see each other."""
    gpus_per_rank: Annotated[float, Field(ge=0, le=1)] = 0
    """GPUs per rank: 0 or 1."""
    placement_timeout_s: PositiveFloat = 120.0
    """Seconds to wait for the nodes' resources before saying what is missing."""
    start_timeout_s: PositiveFloat = 600.0
    """Seconds from forking the ranks to the first finished step (loading, and DeepSpeed's op builds where they are missing)."""
    stall_timeout_s: PositiveFloat = 600.0
    """Seconds without any sign of life from a rank before the attempt is ended as hung."""
    stop_timeout_s: PositiveFloat = 300.0
    """Seconds that a stop, or the end of a run, waits for its checkpoint to become durable, and then for its last records to be written (those for a minute at most)."""
    storage_timeout_s: PositiveFloat = 1800.0
    """Seconds that the start of an attempt (its claim is a file in storage) is tried again while storage is down."""
    max_failures: NonNegativeInt = 3
    """Failures in a row, without a later step or a new checkpoint between them, after which the run stops. The count starts anew with progress."""
    max_hours: NonNegativeFloat = 0.0
    """Hours of wall time that all attempts of the run may take together, waiting and restarts included; then it saves at the end of its step, stops and exits with code 3. 0: none."""
    max_cost: NonNegativeFloat = 0.0
    """What all attempts of the run may cost together, in the currency of `price_per_hour`: all `nodes` are reckoned with, whether they are there or not. Then it stops as with `max_hours`. 0: none."""
    price_per_hour: NonNegativeFloat = 0.0
    """Of one node, for `max_cost`."""
    max_quarantined_steps: NonNegativeInt = 3
    """Steps of the whole run whose samples may be left out because they gave a non-finite gradient, or a loss spike, twice from the same state; the next one stops the run. 0 leaves nothing out."""

    @model_validator(mode="after")
    def _has_a_price(self) -> ClusterConfig:
        if self.max_cost and not self.price_per_hour:
            raise ValueError("`max_cost` is reckoned with `price_per_hour`, what one node costs: set it too")
        return self

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks_per_node
