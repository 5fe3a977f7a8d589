"""Whoever receives the reports writes them down: the driver under Ray, rank 0 under torchrun.

`metrics/` holds `step` and `eval` events, `events/` everything else but the per-step heartbeats; both hold one Event as
JSON per line. The ledger is not written here but by rank 0 itself, so that it is durable before a manifest is.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.events import DRIVER, Event
from zerofleet.trainer.run_folder import RunFolder
from zerofleet.trainer.tracking import WandbTracker

FLUSH_INTERVAL_S = 15.0
"""How long a record may wait before others can read it, where storage cannot append."""

_MARKS = ("checkpoint", "finished", "stopped")
"""Whoever reads one of these finds everything that came before it."""


class Recorder:
    """Writes one driver's (or torchrun attempt's) events and metrics; forwards metrics to the trackers."""

    def __init__(self, run: RunFolder, attempt: int, config: TrainConfig) -> None:
        self._run, self._config = run, config
        self._events = run.writer("events", attempt)
        self._metrics = run.writer("metrics", attempt)
        self._attempt = attempt
        self._flushed_at = time.monotonic()
        self._tracker = self._open_tracker()

    def on_event(self, event: Event) -> None:
        """Writes an event down. Raises StorageError."""
        if event.kind in ("step", "eval"):
            self._metrics.append(event.to_json())
            self._track(event)
        elif not (event.kind == "phase" and event.phase == "step"):
            self._events.append(event.to_json())
        if event.kind in _MARKS or time.monotonic() - self._flushed_at > FLUSH_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Makes everything readable by others, the metrics before the event that marks them. Raises StorageError."""
        self._flushed_at = time.monotonic()  # first: storage that fails is not tried again at every event
        try:
            self._metrics.flush()
        finally:
            self._events.flush()

    def close(self) -> None:
        try:
            if self._tracker is not None:
                self._tracker.close()
        except Exception as error:  # noqa: BLE001
            self._incident("wandb could not be closed: its last values may be missing", error)
        try:
            self._metrics.close()
        finally:
            self._events.close()

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
