"""Loss spikes: whether a step's loss stands out from those before it. Pure; every rank knows the losses, so all agree.

The score is the modified z-score of Iglewicz & Hoaglin, "How to Detect and Handle Outliers" (1993): (x - median) / (1.4826 MAD),
where MAD is the median of |x - median| and 1.4826 makes it the standard deviation of a normal distribution. Unlike mean and
standard deviation, neither is moved by the spike that is looked for. Only a loss that is too high counts.

Known limit: the median lags behind a loss that falls quickly, so a small spike of the first steps is not seen; nothing is
judged before `LEAST` losses are known.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence

WINDOW = 64
"""Newest losses that a step's is compared with."""
LEAST = 16
"""Losses without which nothing is called a spike."""
_MAD_TO_DEVIATION = 1.4826
_LEAST_DEVIATION = 0.01
"""Of the median: the least that counts as a standard deviation. Nearly equal losses would make a spike of any noise."""


def spike_score(loss: float, before: Sequence[float]) -> float:
    """How many robust standard deviations `loss` lies above the median of the losses before it; 0 while there are fewer than
    LEAST, or for a loss that is not finite (fp16: its step is skipped; elsewhere its gradient ends the attempt)."""
    if len(before) < LEAST or not math.isfinite(loss):
        return 0.0
    middle = statistics.median(before)
    spread = statistics.median(abs(value - middle) for value in before)
    return (loss - middle) / max(_MAD_TO_DEVIATION * spread, _LEAST_DEVIATION * abs(middle), math.ulp(0.0))


class RecentLosses:
    """The newest losses of a run: a part of its state, so that a replay judges a step as the first time."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def score(self, loss: float) -> float:
        """The spike score of the next loss."""
        return spike_score(loss, self._losses)

    def add(self, loss: float) -> None:
        """Takes in the loss of a step that is kept."""
        if math.isfinite(loss):
            self._losses.append(loss)

    def values(self) -> list[float]:
        """Oldest first, as a checkpoint holds them."""
        return list(self._losses)

    def restore(self, losses: Sequence[float]) -> None:
        """Goes on from a checkpoint's."""
        self._losses = deque(losses, maxlen=WINDOW)
