"""A run's history as its folder tells it: what cluster's accounts are made of."""

from __future__ import annotations

import time

from zerofleet.cluster.goodput.history import History, end_of
from zerofleet.launch.drivers import driver_records
from zerofleet.launch.run_view import RunView
from zerofleet.trainer.events import Event
from zerofleet.trainer.run_folder import RunFolder


def history_of(view: RunView) -> History:
    """Of a run as it stands: one that lives goes on until now."""
    return read_history(view.run, is_alive=view.is_driven or view.is_torchrun)


def read_history(run: RunFolder, is_alive: bool = False) -> History:
    """Everything that the run has written down. Signs of life of steps are in sums: rank_sums.py."""
    return History(
        attempts=tuple(run.attempts()),
        drivers=tuple(driver_records(run)),
        events=tuple(sorted(run.events(), key=end_of)),
        results=tuple(Event(**line) for line in run.read("metrics")),
        now=time.time() if is_alive else None,
    )
