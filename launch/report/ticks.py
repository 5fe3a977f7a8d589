"""Where an axis has its numbers: round ones, as in P. Heckbert, "Nice Numbers for Graph Labels", Graphics Gems, 1990. Pure."""

from __future__ import annotations

import math

_ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)
_SECONDS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)


def round_step(span: float, pieces: int = 4) -> float:
    """The least round number that cuts `span` into at most so many pieces."""
    if span <= 0 or not math.isfinite(span):
        return 1.0
    least = span / pieces
    scale = 10.0 ** math.floor(math.log10(least))
    return scale * next(number for number in _ROUND if number * scale >= least * (1 - 1e-9))


def around(low: float, high: float) -> list[float]:
    """Round numbers at equal distances, of which the first is at most `low` and the last at least `high`."""
    step = round_step(high - low if high > low else abs(high) or 1.0)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def within(low: float, high: float, is_whole: bool = True) -> list[float]:
    """Round numbers from `low` to `high`, at most five; whole ones for steps."""
    step = round_step(high - low)
    step = max(1.0, math.ceil(step)) if is_whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def of_duration(total_s: float) -> list[float]:
    """Seconds from 0 on that read well, at most six."""
    step = next((s for s in _SECONDS if total_s <= 5 * s), None) or 86400 * math.ceil(total_s / 5 / 86400)
    return [float(step * number) for number in range(int(total_s // step) + 1)]
