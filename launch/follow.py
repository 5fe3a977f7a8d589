"""Reads a run's streams as they grow: each poll reads only what is new, by byte offset."""

from __future__ import annotations

import json
from dataclasses import dataclass

from zerofleet.trainer.errors import StorageError
from zerofleet.trainer.events import Event
from zerofleet.trainer.run_folder import RunFolder

LOCAL_POLL_S = 0.2
REMOTE_POLL_S = 2.0
"""Seconds between looks at the run folder; object stores charge for each."""

STREAMS = ("events", "metrics")
"""The recorder puts steps and evaluations into `metrics`, everything else into `events`."""

_PHASE = b'{"kind":"phase"'
"""Signs of life of every rank: skipped unparsed."""


def poll_interval_s(run: RunFolder) -> float:
    return LOCAL_POLL_S if run.storage.is_local else REMOTE_POLL_S


@dataclass
class _Place:
    """How far the segments of one folder have been read."""

    segment: int = 0
    offset: int = 0


class EventTail:
    """All events of a run, each given out once, over segments and attempts; the ranks' `phase` signs of life only with `has_signs`."""

    def __init__(self, run: RunFolder, has_signs: bool = False) -> None:
        self._storage, self._skipped = run.storage, () if has_signs else (_PHASE,)
        self._places: dict[str, _Place] = {}
        self._read_events: list[Event] = []
        """What was read and not given out yet, since storage failed before the poll was through."""

    def poll(self) -> list[Event]:
        """Events that were written since the last poll, in the order of their ends. A line that is not whole yet waits."""
        for stream in STREAMS:
            for attempt in self._storage.list(stream):
                self._poll_folder(f"{stream}/{attempt}")
        events, self._read_events = self._read_events, []
        return sorted(events, key=lambda event: event.start + event.duration_s)

    def _poll_folder(self, folder: str) -> None:
        place = self._places.setdefault(folder, _Place())
        while True:
            # Asked before reading: once the next segment exists, this one grows no more.
            is_closed = self._storage.exists(_segment(folder, place.segment + 1))
            self._read_events += self._read(_segment(folder, place.segment), place)
            if not is_closed:
                return
            place.segment, place.offset = place.segment + 1, 0

    def _read(self, path: str, place: _Place) -> list[Event]:
        try:
            size = self._storage.size(path)
        except FileNotFoundError:
            return []
        if size <= place.offset:
            return []
        data = self._storage.read(path, place.offset, size)
        whole = data[: data.rfind(b"\n") + 1]
        place.offset += len(whole)
        return [self._parse(line, path) for line in whole.splitlines() if not line.startswith(self._skipped)]

    def _parse(self, line: bytes, path: str) -> Event:
        """Raises StorageError for what is no event."""
        try:
            return Event(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise StorageError(
                f"{self._storage.path(path)} is damaged: the line {line[:40]!r} is no event ({error}). Restore the file, or take "
                "the line out of it"
            ) from error


def _segment(folder: str, number: int) -> str:
    return f"{folder}/segment-{number:05d}.jsonl"
