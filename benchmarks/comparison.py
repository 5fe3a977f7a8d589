"""Two results of the same benchmark on the same kind of machine: is the second one faster, slower, or can nobody tell?

A verdict needs two things: an interval of the ratio that lies wholly on one side of "equal" (95 %, shared among all series of a result by
Bonferroni), and one that lies beyond the least effect that is worth a verdict. Two builds that are equal are not equal to the last per mille: where
the linker and the allocator have put things changes a step by up to a percent (Mytkowicz et al. 2009), and that is no news.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from zerofleet.benchmarks.ratio_intervals import (
    BATCHES,
    RatioInterval,
    least_each,
    least_pairs,
    paired_ratio,
    unpaired_ratio,
)
from zerofleet.benchmarks.record import Result, Series
from zerofleet.benchmarks.statistics import CONFIDENCE

PAIRED_LEAST_EFFECT = 0.015
"""Arms that took turns: what equal engines in one process differ by."""
UNPAIRED_LEAST_EFFECT = 0.05
"""Two sessions: what the same program may take longer on another day, on a machine that is shared."""
BUILD_KEYS = ("packages.zerofleet",)
"""Of the fingerprint: what is compared, and may differ."""


@dataclass(frozen=True)
class Finding:
    """Of one series."""

    name: str
    verdict: str
    """faster, slower, or where it is no time or rate better, worse; or `cannot tell`."""
    interval: RatioInterval | None
    """Of the second over the first, in the series' unit."""
    detail: str
    """How it was found, or why not."""

    @property
    def is_worse(self) -> bool:
        return self.verdict in ("slower", "worse")


def differences(first: Result, second: Result) -> list[str]:
    """Why two results must not be compared: a sentence per key."""
    found = []
    pairs: list[tuple[str, Any, Any]] = [("benchmark", first.benchmark, second.benchmark)]
    pairs.append(("options", first.command, second.command))
    ours, theirs = _flat(first.environment), _flat(second.environment)
    keys = sorted(set(ours) | set(theirs))
    pairs += [(f"environment.{key}", ours.get(key), theirs.get(key)) for key in keys if key not in BUILD_KEYS]
    for key, one, other in pairs:
        if one != other:
            found.append(f"{key}: {_told(one)} against {_told(other)}")
    return found


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _told(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "nothing" if value is None else str(value)


def compare(first: Result, second: Result, least_effect: float | None = None) -> list[Finding]:
    """A finding per series that both have and that is judged. `least_effect` is a share, such as 0.02; by default it follows from the design."""
    sessions = [each.alternation.session for each in (first, second) if each.alternation is not None]
    is_paired = len(sessions) == 2 and sessions[0] == sessions[1]
    judged = list(_common(first.series, second.series))
    if least_effect is None:
        least_effect = PAIRED_LEAST_EFFECT if is_paired else UNPAIRED_LEAST_EFFECT
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(judged))
    return [_finding(a, b, is_paired, confidence, least_effect) for a, b in judged]


def _common(first: Sequence[Series], second: Sequence[Series]) -> Iterator[tuple[Series, Series]]:
    others = {series.name: series for series in second}
    for series in first:
        if series.better is not None and series.name in others:
            yield series, others[series.name]


def _finding(first: Series, second: Series, is_paired: bool, confidence: float, least_effect: float) -> Finding:
    if min(*first.values, *second.values) <= 0:
        return Finding(first.name, "cannot tell", None, "it has values of 0 or less, which have no ratio")
    if is_paired and len(first.values) != len(second.values):
        counts = f"{len(first.values)} and {len(second.values)} values"
        return Finding(first.name, "cannot tell", None, f"they took turns and have {counts}: one was cut short")
    if is_paired:
        needed, counts = least_pairs(confidence), f"{len(first.values)} pairs"
        interval = paired_ratio(first.values, second.values, confidence)
    else:
        needed, counts = least_each(confidence), f"{len(first.values)} and {len(second.values)} repetitions"
        interval = unpaired_ratio(first.values, second.values, confidence)
    if interval is None:
        why = f"at least {needed} are needed" if is_paired or needed <= BATCHES else "there are too many series"
        return Finding(first.name, "cannot tell", None, f"{counts}; {why} for {confidence:.1%}")
    return Finding(first.name, _verdict(first, interval, least_effect), interval, f"{counts}, {confidence:.1%}")


def _verdict(series: Series, interval: RatioInterval, least_effect: float) -> str:
    is_more, is_less = interval.low > 1 + least_effect, interval.high < 1 / (1 + least_effect)
    if not (is_more or is_less):
        return "cannot tell"
    is_worse = is_more == (series.better == "lower")
    if series.unit == "s" or series.unit.endswith("/s"):
        return "slower" if is_worse else "faster"
    return "worse" if is_worse else "better"


def text_of(findings: Sequence[Finding]) -> str:
    """A line per finding."""
    lines = []
    for found in findings:
        ratio = ""
        if found.interval is not None:
            ratio = f"{found.interval.ratio:.3f} [{found.interval.low:.3f}, {found.interval.high:.3f}] times, "
        lines.append(f"{found.name}: {found.verdict} ({ratio}{found.detail})\n")
    return "".join(lines)
