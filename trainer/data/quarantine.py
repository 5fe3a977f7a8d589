"""Quarantine: the sample positions that a run leaves out, as half-open ranges, ascending and disjoint. Pure.

A step takes the next positions that are not left out (`order.step_positions`). So leaving out what step s was fed changes
neither the steps before s nor any state of them: the run goes on from one, and step s takes what follows.
"""

from __future__ import annotations

from collections.abc import Sequence

Ranges = Sequence[Sequence[int]]
"""(start, end) of each range."""


def union(*parts: Ranges) -> list[list[int]]:
    """The fewest ranges that hold every position of `parts`."""
    merged: list[list[int]] = []
    for start, end in sorted((int(start), int(end)) for part in parts for start, end in part):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return merged


def below(ranges: Ranges, end: int) -> list[list[int]]:
    """The part of the ranges that lies before position `end`."""
    return [[start, min(stop, end)] for start, stop in ranges if start < end]


def without(ranges: Ranges, others: Ranges) -> list[list[int]]:
    """The part of the ranges that `others` do not hold."""
    left, taken = [], union(others)
    for start, end in union(ranges):
        for low, high in taken:
            if start < low < end:
                left.append([start, low])
            start = max(start, high) if low < end else start
        if start < end:
            left.append([start, end])
    return left


def num_positions(ranges: Ranges) -> int:
    """How many positions the ranges hold."""
    return sum(end - start for start, end in ranges)


def named(ranges: Ranges) -> str:
    """For messages, both ends included: `positions 152 to 159`."""
    if not ranges:
        return "no positions"
    return "positions " + ", ".join(f"{start} to {end - 1}" if end - start > 1 else f"{start}" for start, end in ranges)
