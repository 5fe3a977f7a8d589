"""Whoever receives the reports writes them down: the driver under Ray, rank 0 under torchrun.

`metrics/` holds `step` and `eval` events, `ledger/` what each step was fed, `events/` everything else but signs of life and
what only a committer needs; one JSON object per line. What each rank says at the end of a step goes into sums (rank_sums.py).
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.credentials import masked_event
from zerofleet.trainer.events import DRIVER, RESULTS, Event
from zerofleet.trainer.rank_sums import RankSums
from zerofleet.trainer.run_folder import RunFolder
from zerofleet.trainer.storage import read_segments
from zerofleet.trainer.tracking import WandbTracker

FLUSH_INTERVAL_S = 15.0
"""How long a record may wait before others can read it, where storage cannot append."""

_UNRECORDED = ("snapshot", "written")
"""Read by whoever commits."""

_MARKS = ("checkpoint", "finished", "stopped")
"""Whoever reads one of these finds everything that came before it."""


class Recorder:
    """Writes one driver's (or torchrun attempt's) events and metrics; forwards metrics to the trackers."""

    def __init__(self, run: RunFolder, attempt: int, config: TrainConfig) -> None:
        self._run, self._config = run, config
        self._events = run.writer("events", attempt)
        self._metrics = run.writer("metrics", attempt)
        self._ledger = run.writer("ledger", attempt)
        self._recalled: list[Event] = []
        self._sums = RankSums(attempt)
        self._newest: dict[tuple[int, str], int] = {}
        """By attempt and kind, the newest step whose result was written down."""
        self._attempt = attempt
        self._flushed_at = time.monotonic()
        self._tracker = self._open_tracker()

    def on_event(self, event: Event) -> None:
        """Writes an event down, without credentials. Raises StorageError."""
        event = masked_event(event)
        self._sums.hear(event)
        if event.kind in RESULTS:
            self._record_news(event)
        elif event.kind == "written":
            for result in (Event(**fields) for fields in event.data.get("results", ())):
                # Of an attempt before, whoever recorded that one may have been told already: it takes a look at what is there.
                self._record_news(result) if result.attempt == self._attempt else self._recalled.append(result)
        elif event.kind == "recalled":
            self._recalled += [Event(**fields) for fields in event.data["events"]]
        elif event.kind not in _UNRECORDED and not (event.kind == "phase" and event.phase in ("step", "snapshot")):
            self._events.append(event.to_json())
        if event.kind in (*_MARKS, "recalled") or time.monotonic() - self._flushed_at > FLUSH_INTERVAL_S:
            self.flush()

    def _record_news(self, event: Event) -> None:
        """A result comes from its rank, and with the rank's file when the step is saved: whichever is first counts, since no
        checkpoint may be there before what its last step was fed."""
        if self._is_news(event):
            self._record_result(event)

    def _is_news(self, event: Event) -> bool:
        """Whether this recorder has heard of neither this result nor a later one of its kind; from now on it has."""
        newest = self._newest.get((event.attempt, event.kind), -1)
        self._newest[event.attempt, event.kind] = max(newest, event.step)
        return event.step > newest

    def _record_result(self, event: Event) -> None:
        """A writer keeps the line that storage does not take: so each stream is given its own, whatever became of the other."""
        entry, event = event.data.get("ledger"), replace(event, data=_without_ledger(event.data))
        with contextlib.ExitStack() as every:
            every.callback(self._track, event)
            every.callback(self._metrics.append, event.to_json())
            if entry:
                every.callback(self._record_fed, entry)

    def _record_fed(self, entry: dict[str, Any]) -> None:
        self._ledger.append(json.dumps(entry, separators=(",", ":")))

    def _record_missing(self) -> None:
        """What the snapshot that a rank started from remembers, and whoever listened to its rank 0 has not written down.

        Raises StorageError; tried again at the next flush, since it takes a look at what is there.
        """
        if not self._recalled:
            return
        self._metrics.flush()
        self._ledger.flush()
        known = {(line["attempt"], line["step"], line["kind"]) for line in self._written("metrics")}
        # Asked apart: a disk that was full may have taken the one line and not the other.
        fed = {(line["attempt"], line["step"]) for line in self._written("ledger")}
        while self._recalled:
            event = self._recalled.pop(0)  # first: a line that is not written now is kept by its writer
            self._is_news(event)  # not, if its rank should tell it still
            entry, key = event.data.get("ledger"), (event.attempt, event.step, event.kind)
            is_known, is_fed = key in known, not entry or (entry["attempt"], entry["step"]) in fed
            known.add(key)
            if entry:
                fed.add((entry["attempt"], entry["step"]))
            if not is_known:
                self._record_result(replace(event, data=_without_ledger(event.data)) if is_fed else event)
            elif entry and not is_fed:
                self._record_fed(entry)

    def _written(self, stream: str) -> list[dict[str, Any]]:
        """What there is of the attempts that the recalled events are of, and of those since: one between may have recalled them too,
        and its recorder wrote them down among its own."""
        attempts = range(min(event.attempt for event in self._recalled), self._attempt + 1)
        folders = [f"{stream}/attempt-{attempt:04d}" for attempt in attempts]
        return [json.loads(line) for folder in folders for line in read_segments(self._run.storage, folder)]

    def _record_sums(self, is_last: bool = False) -> None:
        if (sums := self._sums.take(is_last)) is not None:
            self._events.append(sums.to_json())

    def make_ledger_durable(self) -> None:
        """What was fed up to a step must survive when the step's checkpoint does. Raises StorageError."""
        self._record_missing()
        self._ledger.flush(durable=True)

    def flush(self) -> None:
        """Makes everything readable by others, the metrics before the event that marks them. Raises StorageError."""
        self._flushed_at = time.monotonic()  # first: storage that fails is not tried again at every event
        with contextlib.ExitStack() as every:  # in the reverse order, whatever fails
            every.callback(self._events.flush)
            every.callback(self._record_sums)
            every.callback(self._metrics.flush)
            every.callback(self._ledger.flush)
            every.callback(self._record_missing)

    def close(self) -> None:
        try:
            if self._tracker is not None:
                self._tracker.close()
        except Exception as error:  # noqa: BLE001
            self._incident("wandb could not be closed: its last values may be missing", error)
        with contextlib.ExitStack() as every:
            every.callback(self._events.close)
            every.callback(self._record_sums, is_last=True)
            every.callback(self._metrics.close)
            every.callback(self._ledger.close)
            every.callback(self._record_missing)

    def _open_tracker(self) -> WandbTracker | None:
        if not self._config.tracking.wandb.enabled:
            return None
        storage = self._run.storage
        folder = storage.local_path("wandb") if storage.is_local else Path(tempfile.mkdtemp(prefix="zerofleet-wandb-"))
        try:
            return WandbTracker(self._config, folder)
        except Exception as error:  # noqa: BLE001 - wandb raises many kinds; none may end a run
            self._incident("wandb could not be started", error)
            return None

    def _track(self, event: Event) -> None:
        if self._tracker is None:
            return
        try:
            self._tracker.on_event(event)
        except Exception as error:  # noqa: BLE001
            self._tracker = None
            self._incident("wandb failed and is off for the rest of this attempt", error)

    def _incident(self, what: str, error: Exception) -> None:
        message = f"{what}: {error}"
        data = {"class": "tracking", "message": message}
        self._events.append(Event("incident", self._attempt, DRIVER, 0, "import", time.time(), data=data).to_json())


def _without_ledger(data: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key != "ledger"}
