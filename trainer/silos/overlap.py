"""The outer step beside the next inner ones: a delta travels, and the outer weights come back, while the silo trains on.

At the end of a round the silo keeps its weights b, hands over the delta of them, and goes on from b. Exactly `overlap_steps` inner
steps later, with weights w by then, it takes the round's outer weights W:

    w <- W + (w - b)

The delay by a fixed number of inner steps is that of Streaming DiLoCo (Douillard et al. 2025, arXiv 2501.18512, section 2.3), and with as many as a round has that
of the overlap in Kale et al. (2025, arXiv 2502.12996). Those mix the two weights (a W-share, or the silo's own delta in place of the
others'); here what the silo has learned since the boundary is carried over whole, so that every inner update is in exactly one
delta, the next one: W - (W + all updates since b). Without steps in between w = b, and w <- W as without overlap.

A merge waits for outer weights that have not come: nothing depends on who is how fast, so runs are as reproducible as without.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeVar

import torch

from zerofleet.trainer.checkpoint.adapters import Slot
from zerofleet.trainer.silos.outbox import Float32, Message
from zerofleet.trainer.silos.questions import Pulled, Questions

HANDED_OVER = "outer_handed_over"
"""Counter of a silo's state: its own step at the end of the round whose delta is on its way; 0 where none is."""

Landing = Literal["wait", "rejected", "late", "done"]
LANDINGS: tuple[Landing, ...] = ("wait", "rejected", "late", "done")
"""Of the answers of several ranks the first counts: one that still waits, one that was told it is late."""

Answer = TypeVar("Answer")


def merged(outer: Float32, now: torch.Tensor, boundary: torch.Tensor) -> torch.Tensor:
    """Outer weights, and on them what was learned since the boundary [elements], fp32, on the CPU."""
    return torch.from_numpy(outer) + (now.detach().cpu() - boundary)


class Flight:
    """One round's delta on its way, in a thread of the rank's own. It talks to nobody but the server: no collectives."""

    def __init__(
        self,
        questions: Questions,
        number: int,
        messages: Callable[[], Iterable[Message]],
        slots: Sequence[Slot],
        say_away: Callable[[OSError], None],
        retry_s: float,
    ) -> None:
        """`messages` makes the delta's anew for each try, `slots` say which outer weights are to come back."""
        self._questions, self._number, self._messages, self._slots = questions, number, messages, slots
        self._say_away, self._retry_s = say_away, retry_s
        self._landing: Landing = "wait"
        self._problem: BaseException | None = None
        self.pulled: Pulled = []
        """The round's outer weights, once it is `done`."""
        self.handed_over_at, self.arrived_at = time.time(), 0.0
        """Unix time in seconds: when the thread took over, and when it had all."""
        self._thread = threading.Thread(target=self._fly_or_say_why, name="outer", daemon=True)
        self._thread.start()

    def look(self, wait_s: float) -> int:
        """How it stands, as an index of LANDINGS; waits a little. Raises what ended it."""
        self._thread.join(wait_s)
        if self._problem is not None:
            raise self._problem
        return LANDINGS.index(self._landing)

    def _fly_or_say_why(self) -> None:
        try:
            landing = self._fly()
            self.arrived_at, self._landing = time.time(), landing
        except BaseException as error:  # noqa: BLE001 - raised by look, in the rank's own thread
            self._problem = error

    def _fly(self) -> Landing:
        self._until_heard(lambda: self._questions.send("push", self._messages()))
        landing: Landing = "wait"
        while landing == "wait":  # the server holds its answer back for a while
            landing = self._until_heard(lambda: self._questions.verdict(self._number)["state"])
        if landing == "done":
            self.pulled = self._until_heard(lambda: self._questions.pull(self._number, self._slots))
        return landing

    def _until_heard(self, question: Callable[[], Answer]) -> Answer:
        """A server that is away is tried again, for as long as the rank lives."""
        while True:
            try:
                return question()
            except OSError as error:
                self._say_away(error)
                time.sleep(self._retry_s)
