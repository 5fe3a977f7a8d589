"""Some steps traced on request (`train.profile`): what processor and device did, and the memory that tensors took meanwhile.

Left in the run folder: profile/attempt-0001/rank-00000.trace.json.gz, which Perfetto (ui.perfetto.dev) and chrome://tracing show. The `profile`
event has the ops that took most, and the memory over time, for the report.
"""

from __future__ import annotations

import gzip
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from zerofleet.trainer.config import ProfileConfig
from zerofleet.trainer.events import Control
from zerofleet.trainer.reporter import Reporter
from zerofleet.trainer.storage import Storage
from zerofleet.trainer.world import World

MOST_OPS = 20
MOST_POINTS = 400
"""Of a device's memory in the event: each is the highest of its stretch of time."""
MOST_READ_BYTES = 8 * 2**20
"""Of a trace, compressed: one that is read for its memory takes a hundred times as much while it is."""
_CHUNK_BYTES = 2**20
_DEVICE_TYPES = {0: "cpu", 1: "cuda"}
"""`Device Type` of a trace's memory events (c10/core/DeviceType.h)."""

Point = tuple[float, int]
"""Seconds since the trace began, bytes."""


class Profiler:
    """One rank's. All ranks tell of its beginning and its end, since those that are not traced wait for those that are."""

    def __init__(
        self, wanted: ProfileConfig | None, world: World, storage: Storage, reporter: Reporter, device: torch.device
    ) -> None:
        self._wanted, self._world, self._storage, self._reporter = wanted, world, storage, reporter
        self._is_mine = wanted is not None and world.rank in wanted.ranks
        self._activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        self._trace: profile | None = None
        self._steps: list[int] = []
        """That were traced so far."""

    def step(self, train_step: Callable[[], Control]) -> Control:
        """The next step, traced where that is wanted: what comes between two such steps is in the trace, too."""
        number = self._reporter.step + 1
        if self._wanted is None or not self._wanted.steps[0] <= number <= self._wanted.steps[1]:
            return train_step()
        # Of every one of them: they are slower than the steps that limits of silence were learned from.
        self._reporter.begin("profile")
        if not self._steps and self._is_mine:
            self._begin()
        self._steps.append(number)
        with record_function(f"step {number}"):
            asked = train_step()
        if number == self._wanted.steps[1]:
            self.close()
        return asked

    def close(self) -> None:
        """Leaves what was traced in the run folder. Where that cannot be, training goes on without."""
        if not self._steps:
            return
        steps, self._steps = self._steps, []
        self._reporter.begin("profile")
        if self._trace is None:
            return
        began, trace, self._trace = time.time(), self._trace, None
        try:
            said = self._kept(trace)
        except Exception as error:  # noqa: BLE001 - whatever a profiler or a full disk raises: the run is not about it
            return self._say_lost(f"the trace of steps {steps[0]} to {steps[-1]} was not kept: {error}")
        self._reporter.event("profile", "profile", began, time.time() - began, steps=[steps[0], steps[-1]], **said)

    def _begin(self) -> None:
        trace = profile(activities=self._activities, record_shapes=True, profile_memory=True)
        try:
            trace.start()
        except Exception as error:  # noqa: BLE001 - as above
            return self._say_lost(f"nothing can be traced: {error}")
        self._trace = trace

    def _say_lost(self, message: str) -> None:
        told: dict[str, Any] = {"class": "storage", "message": message}
        self._reporter.event("incident", "profile", **told)

    def _kept(self, trace: profile) -> dict[str, Any]:
        """Data of the event."""
        trace.stop()
        name = f"profile/attempt-{self._world.attempt:04d}/rank-{self._world.rank:05d}.trace.json.gz"
        with tempfile.TemporaryDirectory(prefix="zerofleet-profile-") as folder:
            file = Path(folder, "trace.json.gz")
            trace.export_chrome_trace(str(file))
            self._storage.write_stream(name, _chunks(file))
            memory = {}
            if file.stat().st_size <= MOST_READ_BYTES:
                with gzip.open(file) as text:
                    memory = memory_points(json.load(text)["traceEvents"])
        return {"path": name, "ops": heaviest(trace), "memory": memory}


def heaviest(trace: profile) -> list[dict[str, Any]]:
    """The ops that took most time by themselves, on the device where there is one: `name`, `calls`, `self_s`."""
    found = []
    for op in trace.key_averages():
        self_us = op.self_device_time_total or op.self_cpu_time_total
        if not op.key.startswith(("step ", "[memory]")):
            found.append({"name": op.key, "calls": op.count, "self_s": round(self_us / 1e6, 6)})
    return sorted(found, key=lambda op: -float(op["self_s"]))[:MOST_OPS]


def memory_points(events: list[dict[str, Any]]) -> dict[str, list[Point]]:
    """By device, the bytes of tensors over time, by the events of a Chrome trace. On a CPU those that were allocated before the trace began are not
    counted: it may fall below 0."""
    found: dict[str, list[Point]] = {}
    began_us = min((float(event["ts"]) for event in events if event.get("ph") in ("X", "i")), default=0.0)
    for event in events:
        if event.get("name") == "[memory]":
            kind = _DEVICE_TYPES.get(event["args"]["Device Type"], "other")
            at_s = (float(event["ts"]) - began_us) / 1e6
            found.setdefault(kind, []).append((at_s, int(event["args"]["Total Allocated"])))
    return {kind: highest(sorted(points), MOST_POINTS) for kind, points in found.items()}


def highest(points: list[Point], most: int) -> list[Point]:
    """The highest of each of at most `most` equal stretches of time."""
    if len(points) <= most:
        return points
    begin, end = points[0][0], points[-1][0]
    bounds = [begin + (end - begin) * number / most for number in range(most + 1)]
    rest, found = iter(points), []
    point: Point | None = next(rest)
    for _, until in pairwise(bounds):
        stretch = []
        while point is not None and (point[0] < until or until == bounds[-1]):
            stretch.append(point)
            point = next(rest, None)
        if stretch:
            found.append(max(stretch, key=lambda each: each[1]))
    return found


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as source:
        while chunk := source.read(_CHUNK_BYTES):
            yield chunk
