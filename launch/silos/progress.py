"""The loss of a run of silos, round by round, from what its silos say. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from zerofleet.trainer.events import Event

PATIENCE_S = 30.0
"""Rounds may be shorter than what a silo takes to tell of its steps."""


@dataclass
class RoundLosses:
    """By silo and round the newest account of it: a step that was repeated counts once."""

    interval_steps: int
    _steps: dict[tuple[str, int], Event] = field(default_factory=dict)
    _last_steps: dict[tuple[str, int], int] = field(default_factory=dict)
    """By silo and round, the silo's own step at the round's end."""
    _closed: dict[int, tuple[tuple[str, ...], float]] = field(default_factory=dict)
    """Rounds that are to be told, with the silos in them, and when they were closed."""

    def hear(self, silo: str, event: Event) -> None:
        """A silo's event."""
        if event.kind == "step":
            self._steps[silo, event.step] = event
        elif event.kind == "outer" and event.data["state"] == "done":
            self._last_steps[silo, event.data["round"]] = event.data.get("handed_over_step", event.step)

    def close(self, number: int, silos: Iterable[str], now: float) -> None:
        """The round is closed, with these silos in it. `now` on any clock that `take` has too."""
        self._closed[number] = tuple(sorted(silos)), now

    def take(self, now: float, is_end: bool = False) -> Iterator[tuple[int, float, int, float, float]]:
        """Step, mean loss per token, tokens, start and seconds of each round that every silo in it has told of, in order. A round that lacks a
        silo's account waits for PATIENCE_S, beyond that to the end of the next round, and not at the end of the run."""
        for number in sorted(self._closed):
            silos, closed_at = self._closed[number]
            lasts = {silo: self._last_steps.get((silo, number)) for silo in silos}
            keys = [(silo, step) for silo, last in lasts.items() if last is not None for step in self._of(last)]
            known = [self._steps[key] for key in keys if key in self._steps]
            is_waited_for = number == max(self._closed) or now < closed_at + PATIENCE_S
            if len(known) < len(silos) * self.interval_steps and is_waited_for and not is_end:
                return
            del self._closed[number]
            if known:
                yield self._sum(number, known)
            for key in keys:
                self._steps.pop(key, None)

    def _of(self, last: int) -> range:
        return range(last - self.interval_steps + 1, last + 1)

    def _sum(self, number: int, events: list[Event]) -> tuple[int, float, int, float, float]:
        tokens = sum(int(event.data["tokens"]) for event in events)
        loss = sum(event.data["loss"] * event.data["tokens"] for event in events) / max(tokens, 1)
        start = min(event.start for event in events)
        end = max(event.start + event.duration_s for event in events)
        return number * self.interval_steps, loss, tokens, start, end - start
