"""Chunks: the pieces of a model's flattened parameters that travel, are aggregated and take the outer step on their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

MAX_CHUNK_ELEMENTS = 1 << 16
"""256 KiB of fp32: a chunk and its sum in fp64 stay in a core's cache, and a message is long against its header."""
SUMMED_ELEMENTS = 1 << 18
"""1 MiB of each silo in turn, 2 MiB of a sum: where deltas are added up, a longer run of each silo's memory is worth more than a smaller sum
(twice as fast, benchmarks/results/2026-11-23-aggregation.md)."""


class Chunk(NamedTuple):
    """Elements [start, start + count) of the flattened parameter `name`."""

    name: str
    start: int
    count: int  # type: ignore[assignment]  # a tuple's own `count` is never wanted here


def chunks_of(elements: Mapping[str, int], max_elements: int = MAX_CHUNK_ELEMENTS) -> Iterator[Chunk]:
    """Every element once, by name and start, so that all silos cut alike. `elements` are the parameters' sizes by name; no chunk is
    longer than `max_elements`, and none spans two parameters."""
    assert max_elements > 0
    for name in sorted(elements):
        for start in range(0, elements[name], max_elements):
            yield Chunk(name, start, min(max_elements, elements[name] - start))
