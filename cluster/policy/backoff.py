"""How long to wait before trying again. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

FIRST_S = 0.5
LONGEST_S = 30.0


@dataclass
class Backoff:
    """Doubles from FIRST_S to LONGEST_S, each time a random half to whole of it, so that many who failed together do not all
    come back together (Brooker 2015, "Exponential backoff and jitter")."""

    draw: random.Random = field(default_factory=random.Random)
    failures: int = 0

    def next(self) -> float:
        """Seconds to wait after another failure."""
        doubled = FIRST_S * 2.0 ** min(self.failures, 32)  # 2^5000 is no float
        self.failures += 1
        bound = min(LONGEST_S, doubled)
        return bound * self.draw.uniform(0.5, 1.0)
