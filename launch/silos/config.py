"""The silos of a job. Imports neither torch nor ray."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from zerofleet.cluster.config import NodeLabels
from zerofleet.trainer.config import (
    Codec,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PrivacyConfig,
    Section,
    SourceFields,
)

SiloName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9._-]{0,45}[a-z0-9])?$")]


class SiloMember(SourceFields):
    """One silo, under a name of your choice."""

    weight: PositiveFloat = 1.0
    """What the silo's tokens are multiplied by in the mean of the deltas."""
    address: str | None = None
    """`host:port` of the Ray cluster that the silo runs on, instead of `cluster.address`."""
    labels: NodeLabels | None = None
    """Labels that each of the silo's nodes must carry, instead of `cluster.labels`: on a cluster that several silos share, what keeps them apart."""
    nodes: PositiveInt | None = None
    """Nodes of the silo, instead of `cluster.nodes`."""
    ranks_per_node: PositiveInt | None = None
    """Ranks per node of the silo, instead of `cluster.ranks_per_node`."""
    zero_stage: Literal[0, 1, 2, 3] | None = None
    """ZeRO stage inside the silo, instead of `train.zero_stage`."""
    key_file: str | None = None
    """File on the silo's machines with at least 32 random bytes that only the silo can read: the secret that its noise comes from. Without it one is made in the silo's run folder."""
    environment_file: str | None = None
    """File of `NAME=value` lines on the machine of the run's driver, which only its owner can read (mode 600): credentials for this silo's driver and the ranks of its own Ray. It is read when that driver is started; what it holds is in no run folder and no log."""

    @model_validator(mode="after")
    def _one_place(self) -> SiloMember:
        if bool(self.files) == (self.hub is not None):
            raise ValueError("a silo of `silos.members` has either `files` or `hub`, one of the two")
        return self


class SilosConfig(Section):
    members: dict[SiloName, SiloMember]
    """The silos by name, each with its data (`files` or `hub`, `format`, `text_field`) and what differs from `cluster` and `train`. `data.files` of the job is what all may read: the tokenizer is trained on it, unless `data.tokenizer` is given."""
    strategy: str = "diloco"
    """What becomes of the deltas: `every_step`, `fedavg`, `fedprox` (whose inner steps are pulled towards the outer weights), `diloco` (Nesterov momentum), or `package.module:function` of your own."""
    strategy_options: dict[str, Any] = Field(default_factory=dict)
    """Options of the strategy, such as `lr`, `momentum_factor`, or `mu` of fedprox."""
    interval_steps: PositiveInt = 50
    """Inner steps of each silo between two outer steps; divides `train.steps`."""
    overlap_steps: NonNegativeInt = 0
    """Inner steps of the next round that a silo takes while its delta, the outer step and the outer weights are on their way; they are merged after exactly so many, at most `interval_steps`. 0 waits at the end of a round."""
    codec: Codec = "fp32"
    """How deltas travel: 32, 16, 8.125 or 4.25 bits an element. What a round leaves out is added to the next one's delta (error feedback)."""
    privacy: PrivacyConfig | None = None
    """Each silo clips its deltas and adds noise before they leave it; the accountant's epsilon is told in every round."""
    secure_aggregation: bool = False
    """Deltas leave under masks that only their sum is rid of, so that the server sees no single one (needs three silos, fp32 and the plain mean)."""
    aggregation: Literal["mean", "trimmed_mean", "median"] = "mean"
    """What of the deltas makes the outer gradient: their mean by tokens x weight, or element by element what some silos cannot move at will, whatever they send; all silos then count alike."""
    trimmed_fraction: float = Field(default=0.2, gt=0, lt=0.5)
    """Of `trimmed_mean`: share of the silos, rounded up, whose values are left out of an element on either side; as many may be hostile."""
    quorum: NonNegativeInt = 0
    """Fewest silos whose deltas make an outer step; 0 takes all."""
    deadline_s: PositiveFloat = 600.0
    """Seconds after the first silo's delta of a round after which those that have not sent theirs are left out, if the quorum is there."""
    keep_rounds: PositiveInt = 4
    """Newest outer rounds that are kept, for a silo that repeats steps; one that is further behind goes on from the newest outer weights."""
    listen: str = ""
    """Address of the driver's host at which silos reach the outer server. Empty: 127.0.0.1, or where silos run on a Ray cluster that is joined, the address that this host has towards its head."""

    @model_validator(mode="after")
    def _counts_fit(self) -> SilosConfig:
        if len(self.members) < 2:
            raise ValueError(f"`silos.members` has {len(self.members)} silo: give two or more, or leave `silos` out")
        if self.quorum > len(self.members):
            raise ValueError(f"`silos.quorum` is {self.quorum} and there are {len(self.members)} silos: lower it")
        return self

    @property
    def least(self) -> int:
        """The quorum in silos."""
        return self.quorum or len(self.members)
