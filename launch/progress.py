"""How a run stands, as a reading of its event stream. Pure: events in, numbers out."""

from __future__ import annotations

import itertools
import statistics
from collections import deque
from dataclasses import dataclass, field

from zerofleet.trainer.events import DRIVER, Event

FINAL_STATES = frozenset({"FINISHED", "FAILED", "STOPPED"})
_TORCHRUN_STATES = {
    **dict.fromkeys(("info", "loaded", "step"), "TORCHRUN"),
    "finished": "FINISHED",
    "stopped": "STOPPED",
}
"""What a rank's event says about a run that has no driver to say it."""

_RECENT_STEPS = 20
"""Steps that throughput and the remaining time are averaged over."""


@dataclass(frozen=True)
class _Step:
    """`ended_at` in Unix seconds."""

    ended_at: float
    tokens: int
    mfu: float | None


@dataclass
class Progress:
    """What a user asks of a run; `apply` takes its events in order."""

    total_steps: int
    torchrun_attempts: frozenset[int] = frozenset()
    """Attempts that no driver claimed: there is nobody to say their states, so they are read from what the ranks say."""
    state: str = "PENDING"
    """The controller's, or TORCHRUN."""
    exit_code: int | None = None
    """The driver's, once the run has ended."""
    ended_at: float = 0.0
    """When its driver said the final state (Unix seconds); 0 while there is none."""
    why: str = ""
    """Why the run is in this state, where the driver said so."""
    attempt: int = 0
    step: int = 0
    loss: float | None = None
    evals: list[tuple[int, float]] = field(default_factory=list)
    """(step, held-out loss), in order; a repeated step counts once."""
    prepare: tuple[str, float, str] | None = None
    """Stage, fraction in [0, 1] and detail of the data preparation, while it goes on."""
    last_checkpoint: int | None = None
    incidents: list[str] = field(default_factory=list)
    verdict: str = ""
    error: str = ""
    """The last exception of a rank: type and message."""
    user_error: str = ""
    """The last error that the user can mend."""
    export_path: str | None = None
    outer: tuple[int, str] | None = None
    """Of a silo: its newest outer round, and what became of its delta."""
    privacy: dict[str, float] = field(default_factory=dict)
    """Of a silo that keeps its data private: what it has spent so far, `epsilon` at `delta` after `releases`."""
    last_event_at: float = 0.0
    _recent: deque[_Step] = field(default_factory=lambda: deque(maxlen=_RECENT_STEPS + 1))

    @property
    def is_final(self) -> bool:
        return self.state in FINAL_STATES

    def ended_since(self, at: float) -> bool:
        """Whether a driver that began then (Unix seconds) has said that it brought the run to its end."""
        return self.is_final and self.ended_at >= at

    @property
    def tokens_per_second(self) -> float | None:
        """Over the last steps, everything between them included."""
        if len(self._recent) < 2:
            return None
        elapsed = self._recent[-1].ended_at - self._recent[0].ended_at
        return sum(step.tokens for step in list(self._recent)[1:]) / elapsed if elapsed > 0 else None

    @property
    def mfu(self) -> float | None:
        """Mean over the last steps, where the ranks report it."""
        known = [step.mfu for step in self._recent if step.mfu is not None]
        return statistics.fmean(known) if known else None

    @property
    def step_s(self) -> float | None:
        """Median seconds from one step to the next."""
        ends = [step.ended_at for step in self._recent]
        return statistics.median(b - a for a, b in itertools.pairwise(ends)) if len(ends) > 1 else None

    @property
    def eta_s(self) -> float | None:
        """Seconds of training that remain."""
        return None if self.step_s is None or self.is_final else (self.total_steps - self.step) * self.step_s

    def new_driver(self, total_steps: int) -> None:
        """A driver starts: the run goes on, whatever state the one before it left."""
        self.total_steps, self.state, self.why = total_steps, "PENDING", ""
        self._forget_errors()
        self._recent.clear()

    def _forget_errors(self) -> None:
        self.verdict = self.error = self.user_error = ""

    def apply(self, event: Event) -> None:
        self.attempt = max(self.attempt, event.attempt)
        self.last_event_at = max(self.last_event_at, event.start + event.duration_s)
        is_torchruns = event.rank != DRIVER and event.attempt in self.torchrun_attempts
        if is_torchruns and event.kind in _TORCHRUN_STATES:
            self.state, self.why = _TORCHRUN_STATES[event.kind], ""
        handler = getattr(self, f"_on_{event.kind}", None)
        if handler is not None:
            handler(event)

    def _on_state(self, event: Event) -> None:
        self.state, self.why = event.data["to"], event.data.get("why", "")
        self.exit_code = event.data.get("exit_code")
        self.ended_at = event.start if self.is_final else 0.0
        if self.state == "PREPARING":
            self._forget_errors()  # a driver begins: they were another's
        if self.state != "PREPARING":
            self.prepare = None
        if self.state != "RUNNING":
            self._recent.clear()  # a restart is no step time

    def _on_prepare(self, event: Event) -> None:
        self.prepare = (event.data["stage"], float(event.data["fraction"]), event.data.get("detail", ""))

    def _on_step(self, event: Event) -> None:
        if self._recent and event.step <= self.step:
            self._recent.clear()
        self.step, self.loss = event.step, event.data.get("loss")
        ended_at = event.start + event.duration_s
        self._recent.append(_Step(ended_at, int(event.data.get("tokens", 0)), event.data.get("mfu")))

    def _on_eval(self, event: Event) -> None:
        self.evals = [entry for entry in self.evals if entry[0] < event.step]
        self.evals.append((event.step, event.data["loss"]))

    def _on_checkpoint(self, event: Event) -> None:
        self.last_checkpoint = event.step

    def _on_loaded(self, event: Event) -> None:
        self.step = event.step
        self._recent.clear()

    def _on_incident(self, event: Event) -> None:
        self.incidents.append(event.data["message"])

    def _on_verdict(self, event: Event) -> None:
        self.verdict = event.data["sentence"]

    def _on_error(self, event: Event) -> None:
        self.error = f"{event.data['type']}: {event.data['message']}"
        if event.data.get("user"):
            self.user_error = event.data["message"]

    def _on_outer(self, event: Event) -> None:
        self.outer = event.data["round"], event.data["state"]
        self.privacy = event.data.get("privacy", {})

    def _on_export(self, event: Event) -> None:
        self.export_path = event.data["path"]
