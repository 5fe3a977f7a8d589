"""What each failure of a run cost. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from zerofleet.cluster.goodput.ledger import Ledger
from zerofleet.cluster.goodput.timeline import Label, Span
from zerofleet.cluster.verdict import TIME_LIMIT
from zerofleet.trainer.events import Event

COSTS: tuple[Label, ...] = ("lost work", "detect", "restart")
DRIVER_LOST = "driver lost"


@dataclass
class FailureCost:
    """One attempt's, in seconds by label. `kind` is the verdict's class, or DRIVER_LOST where there was nobody to judge."""

    attempt: int
    kind: str = DRIVER_LOST
    sentence: str = "the run's driver died"
    node: str | None = None
    rank: int | None = None
    action: str = "retry"
    seconds: dict[Label, float] = field(default_factory=lambda: dict.fromkeys(COSTS, 0.0))

    @property
    def cost_s(self) -> float:
        return sum(self.seconds.values())


def failure_costs(ledger: Ledger) -> list[FailureCost]:
    """By attempt. All of them together cost what the ledger has under COSTS, resizes apart."""
    events = ledger.history.events
    found = {
        event.attempt: _judged(event)
        for event in events
        if event.kind == "verdict" and event.data["class"] != TIME_LIMIT
    }
    turns = [event for event in events if event.kind == "state" and event.data["to"] in ("RECOVERING", "RESIZING")]
    current: FailureCost | None = None
    for span in ledger.spans:
        if span.label == "restart":
            current = current or found.get(_broken_before(span, turns))
        elif span.label in COSTS:
            current = found.setdefault(span.attempt, FailureCost(span.attempt))
        elif current is not None and span.label in ("step", "eval") and span.attempt != current.attempt:
            current = None  # mended
        if current is not None and span.label in COSTS:
            current.seconds[span.label] += span.seconds
    return sorted(found.values(), key=lambda failure: failure.attempt)


def _broken_before(span: Span, turns: Sequence[Event]) -> int:
    """The attempt whose failure a restart mends, where it was noticed at once; 0 of a resize."""
    past = [event for event in turns if event.start <= span.start]
    return past[-1].attempt if past and past[-1].data["to"] == "RECOVERING" else 0


def _judged(event: Event) -> FailureCost:
    data = event.data
    kind, action = str(data["class"]), str(data.get("action", "retry"))
    return FailureCost(event.attempt, kind, str(data["sentence"]), data.get("node"), data.get("rank"), action)
