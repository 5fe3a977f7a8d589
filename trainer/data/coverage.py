"""Which positions were fed how often: the proof that every one was fed once needs the ranges alone. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from zerofleet.trainer.data.quarantine import Ranges

Int64 = NDArray[np.int64]
Fault = Literal["gap", "repeat", "quarantined"]


@dataclass(frozen=True)
class Stretch:
    """Positions [start, end) that were not fed once: fed to nobody, more than once, or though they are quarantined."""

    fault: Fault
    start: int
    end: int


def stretches(starts: Int64, ends: Int64, quarantine: Ranges, end: int) -> list[Stretch]:
    """What is wrong with the ranges [starts, ends), which are to hold each position in [0, end) once and quarantined ones never.

    As long as possible, in the order of their starts. Empty: the proof.
    """
    kept_out = np.array([list(bounds) for bounds in quarantine], dtype=np.int64).reshape(-1, 2)
    edges = np.unique(np.concatenate([starts, ends, kept_out.ravel(), [0, end]]))
    fed = _depth(edges, starts, ends)
    is_quarantined = _depth(edges, kept_out[:, 0], kept_out[:, 1]) > 0
    is_planned = (edges >= 0) & (edges < end)
    found: list[Stretch] = []
    faults: tuple[tuple[Fault, NDArray[np.bool_]], ...] = (
        ("gap", (fed == 0) & ~is_quarantined & is_planned),
        ("repeat", fed > 1),
        ("quarantined", (fed > 0) & is_quarantined),
    )
    for fault, flags in faults:
        turns = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]])))
        found += [Stretch(fault, int(edges[a]), int(edges[b])) for a, b in turns.reshape(-1, 2)]
    return sorted(found, key=lambda stretch: stretch.start)


def _depth(edges: Int64, starts: Int64, ends: Int64) -> Int64:
    """How many of the ranges hold what lies from each edge to the next."""
    begun: Int64 = np.searchsorted(np.sort(starts), edges, side="right")
    return begun - np.searchsorted(np.sort(ends), edges, side="right")
