"""Keeps the state: asks when to save, saves, and knows what is on its way to storage."""

from __future__ import annotations

import time
from collections.abc import Callable

from zerofleet.trainer.checkpoint.cadence import Cadence
from zerofleet.trainer.checkpoint.save import Saver
from zerofleet.trainer.events import Control
from zerofleet.trainer.reporter import Reporter


class Keeper:
    """One rank's. All ranks call `keep` at the same steps, since what is done was agreed upon in the step's collective."""

    def __init__(self, reporter: Reporter, saver: Saver, cadence: Cadence, probe: Callable[[], float]) -> None:
        """`probe` is collective, and gives the probe loss of the weights as they are."""
        self._reporter, self._saver, self._cadence, self._probe = reporter, saver, cadence, probe
        cadence.has_buddy, cadence.has_room, cadence.has_third = saver.has_buddy, saver.has_room, saver.has_third
        self.saved_step: int | None = None
        """The newest step that is durable, or on its way there."""
        self._stall_s: float | None = None
        """How long the rank has stood still for the newest snapshot, which it may not have settled yet."""
        self._stalled_s = 0.0
        self._is_asked = False
        """A save, that waits."""

    def restored(self, step: int, from_memory: bool) -> None:
        """The state of `step` was loaded; from memory it is not durable yet, as far as is known."""
        self.saved_step = None if from_memory else step
        self._cadence.durable_step = self._cadence.snapshot_step = step

    def due(self, asked: Control) -> Control:
        """On rank 0: what to do after the step that runs, by request or because it is time. A save that is asked for waits for the one before to be
        settled, as all do: each holds a buffer while storage is down."""
        now = time.monotonic()
        self._cadence.settled(asked.settled_step, now)
        self._cadence.replicated(asked.replicated_step)
        due = Control(self._cadence.due(self._reporter.step + 1, now))
        if asked.action == "save":
            self._is_asked, asked = True, Control()
        if self._is_asked and self._cadence.in_flight is None:
            due = Control("save")
        chosen = max(asked, due, key=lambda control: control.code)
        self._is_asked = self._is_asked and chosen.action not in ("save", "stop")
        return chosen

    def settle(self) -> None:
        """To be called before the optimizer changes the state."""
        waited_s = self._saver.settle()
        self._stalled_s += waited_s
        if self._stall_s is not None:
            self._cadence.stalled(self._stall_s + waited_s)
            self._stall_s = None

    def take_stall_s(self) -> float:
        """How long the rank has stood still for saves since the last call."""
        stalled_s, self._stalled_s = self._stalled_s, 0.0
        return stalled_s

    def stepped(self, seconds: float) -> None:
        """A step took so long."""
        self._cadence.stepped(seconds)

    def keep(self, control: Control, is_last: bool = False) -> None:
        """Does what the step's end asks for: nothing, a snapshot, for this node or its buddy too, or a save."""
        step, durable = self._reporter.step, control.action in ("save", "stop")
        replicate = control.action in ("replicate", "save", "stop")  # a node that is to go takes its part with it
        is_taken = durable or (control.action != "none" and self._saver.is_background)
        if not is_taken or self.saved_step == step:
            return self._reporter.release()
        self._reporter.begin("save" if durable else "snapshot")
        if not self._saver.is_background:
            self._reporter.release()  # whether storage takes it or not, and however long that takes
        asked = time.perf_counter()
        probe_loss = self._probe() if durable else None
        began = time.perf_counter()
        waits = is_last or control.action == "stop"  # no later save will make up for this one
        self._saver.save(step, durable, list(self._reporter.recent), replicate, waits, probe_loss)
        ended = time.perf_counter()
        self._stall_s = ended - began  # what a snapshot costs: it has no probe
        self._stalled_s += ended - asked
        self._cadence.snapshot_started(step)
        if replicate:
            self._cadence.replica_started(step)
        if durable:
            self.saved_step = step
            self._cadence.save_started(step, time.monotonic())
        if not self._saver.is_background:
            self._cadence.settled(step, time.monotonic())
