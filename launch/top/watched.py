"""A run that is watched: its view and its board, brought up to date from the run folder."""

from __future__ import annotations

import time
from dataclasses import dataclass

from zerofleet.launch.drivers import driver_records
from zerofleet.launch.run_view import RunView
from zerofleet.launch.silos.jobs import silo_runs
from zerofleet.launch.top.board import Board
from zerofleet.trainer.run_folder import RunFolder


@dataclass
class Watched:
    """`silos` are the runs that this one is made of; most are made of none."""

    view: RunView
    board: Board
    silos: list[Watched]
    _records: tuple[list[str], list[str]]

    @staticmethod
    def open(run: RunFolder) -> Watched:
        """Reads the whole run. Raises StorageError."""
        records = _records(run)
        board = Board(drivers=driver_records(run), attempts=run.attempts())
        view = RunView.of(run, board.hear)
        return Watched(view, board, [Watched.open(silo) for silo in silo_runs(run)], records)

    def refresh(self) -> Watched:
        """With what was written since. A driver or an attempt more is read anew: it changes what counts of the steps before. Raises StorageError."""
        run = self.view.run
        if _records(run) != self._records or len(silo_runs(run)) != len(self.silos):
            return Watched.open(run)
        for event in self.view.tail.poll():
            self.view.progress.apply(event)
            self.board.hear(event)
        self.silos = [silo.refresh() for silo in self.silos]
        return self

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of itself."""
        return not (self.view.is_driven or self.view.is_torchrun)

    @property
    def now(self) -> float:
        """Until when the run's time counts (Unix s)."""
        return self.view.progress.last_event_at if self.is_over else time.time()


def _records(run: RunFolder) -> tuple[list[str], list[str]]:
    return run.storage.list("drivers"), run.storage.list("attempts")
