"""How often large runs broke off, as published, and what a failure looks like to a run. Data.

Which of the published causes takes the node, ends a rank alone, freezes it or cuts off a rack is this project's reading: the papers do not say.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Kind = Literal["rank", "node", "rack", "hang"]
"""A rank's process ends and its node stays; a node is lost; all nodes of a rack are; a rank falls silent."""
DAY_S = 24 * 3600.0


@dataclass(frozen=True)
class FailureRates:
    """`shares` are counts, or weights."""

    source: str
    per_gpu_day: float
    shares: dict[Kind, float]

    def mtbf_s(self, gpus: int) -> float:
        """Mean seconds between failures of so many GPUs, whatever the kind: failures are independent and memoryless."""
        return DAY_S / (self.per_gpu_day * gpus)

    def next_s(self, gpus: int, draw: random.Random) -> float:
        return draw.expovariate(1 / self.mtbf_s(gpus))

    def kind(self, draw: random.Random) -> Kind:
        return draw.choices(list(self.shares), list(self.shares.values()))[0]


_LLAMA3: dict[Kind, float] = {"node": 315, "rank": 62, "hang": 7, "rack": 35}
"""Of table 5: GPUs and their memories, processors and sensors, hosts and their maintenance take the node (315); software bugs, dependencies and
silent corruption end a rank (62); watchdog timeouts are hangs (7); every switch or cable cuts off a rack, which is the worst that it can do (35)."""

RATES: dict[str, FailureRates] = {
    "llama3": FailureRates(
        "Llama Team 2024, The Llama 3 Herd of Models (arXiv 2407.21783), table 5: 419 unexpected interruptions in 54 days on 16,384 H100",
        419 / 54 / 16_384,
        _LLAMA3,
    ),
    "rsc1": FailureRates(
        "Kokolis et al. 2025, Revisiting Reliability in Large-Scale Machine Learning Research Clusters (arXiv 2410.21680): 6.50 failures per 1,000 "
        "node-days of 8 A100 on RSC-1; kinds as in llama3",
        6.5 / 1000 / 8,
        _LLAMA3,
    ),
    "rsc2": FailureRates(
        "The same, RSC-2: 2.34 failures per 1,000 node-days; kinds as in llama3",
        2.34 / 1000 / 8,
        _LLAMA3,
    ),
    "opt175b": FailureRates(
        "Zhang et al. 2022, OPT (arXiv 2205.01068) and its logbook: about 54 restarts in 56 days on 992 A100; kinds as in llama3",
        54 / 56 / 992,
        _LLAMA3,
    ),
}
