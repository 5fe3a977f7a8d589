"""Silos as ranks without Ray, and the outer server of their run beside them, in one process."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.support.ranks import Outcome, Plan, job, run_attempt
from zerofleet.cluster.outer.rounds import Rounds
from zerofleet.cluster.outer.server import OuterServer
from zerofleet.cluster.outer.state import OuterStore
from zerofleet.cluster.outer.terms import Terms
from zerofleet.trainer.checkpoint.format import Manifest
from zerofleet.trainer.config import Codec, SiloConfig, TrainConfig
from zerofleet.trainer.data.cache import DataCache
from zerofleet.trainer.run_folder import RunFolder
from zerofleet.trainer.silos.codecs import load_codec
from zerofleet.trainer.silos.strategies import load_strategy
from zerofleet.trainer.silos.wire import VARIABLE
from zerofleet.trainer.storage import Storage

STEPS, INTERVAL = 6, 2
_TIMEOUT_S = 240.0
"""Of one silo, which may wait for others that share the machine."""


class Silos:
    """Silos over the same data, each in its own order, and the outer server of their run. `agreed` are fields of its terms, `silo` of each silo's config."""

    def __init__(
        self,
        folder: Path,
        corpus: Path,
        cache: DataCache,
        codec: Codec = "fp32",
        quorum: int = 2,
        deadline_s: float = 600.0,
        names: str = "ab",
        strategy: str = "diloco",
        agreed: Mapping[str, Any] = MappingProxyType({}),
        silo: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.folder, self.corpus, self.cache = folder, corpus, cache
        self.events: list[tuple[str, dict[str, Any]]] = []
        weights = dict.fromkeys(names, 1.0)
        self.terms = Terms(weights, load_strategy(strategy), load_codec(codec), quorum, deadline_s, **agreed)
        self.rounds = self._rounds()
        self.server = OuterServer(self.rounds)
        self._silo = {"interval_steps": INTERVAL, "codec": codec, **silo}

    def _rounds(self) -> Rounds:
        store = OuterStore(Storage(str(self.folder)), 4)
        return Rounds(self.terms, store, lambda *event: self.events.append(event))

    def forget(self) -> None:
        """As a new driver of the run: what is durable is known, a round that is open begins anew."""
        self.rounds = self.server._rounds = self._rounds()

    def config(self, name: str, stage: int, **changes: Any) -> TrainConfig:
        silo = SiloConfig(name=name, **self._silo)
        settings = {"train__steps": STEPS, "train__zero_stage": stage, **changes}
        found = job(self.folder / name, self.corpus, silo=silo, **settings)
        return found.model_copy(update={"data": job(self.corpus, self.corpus).data})

    def run(self, name: str, world_size: int, stage: int, plan: Plan = Plan(), **changes: Any) -> Outcome:
        plan = replace(plan, environment={VARIABLE: self.server.where.to_env(), **plan.environment})
        return run_attempt(self.config(name, stage, **changes), self.cache, world_size, plan, timeout_s=_TIMEOUT_S)

    def all(self, **arguments: tuple[Any, ...]) -> dict[str, Outcome]:
        """By silo: world size, stage and perhaps a plan."""
        with ThreadPoolExecutor(len(arguments)) as pool:
            found = pool.map(lambda name: self.run(name, *arguments[name]), arguments)
            return dict(zip(arguments, found, strict=True))

    def both(self, one: tuple[Any, ...], other: tuple[Any, ...]) -> dict[str, Outcome]:
        return self.all(a=one, b=other)

    def manifest(self, name: str) -> Manifest:
        """Of a silo's newest checkpoint."""
        run = RunFolder(str(self.folder / name / "runs"), "tiny")
        return Manifest.from_bytes(run.storage.read(run.checkpoints()[-1].manifest))

    def masters(self, name: str) -> dict[str, str]:
        """Digests of a silo's weights in its newest checkpoint."""
        digests = self.manifest(name).digests
        return {label: value for label, value in digests.items() if label.startswith("master/")}

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [data for found, data in self.events if found == kind]

    def close(self) -> None:
        self.server.close()
