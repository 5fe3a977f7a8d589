"""A run's chain of causes in words: what happened, where the time went, why, and what would have saved most."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from zerofleet.cluster.goodput.account import Account, Cause
from zerofleet.cluster.goodput.causes import best_setting, explain
from zerofleet.cluster.goodput.ledger import Ledger, Seconds
from zerofleet.launch.accounts import history_of
from zerofleet.launch.run_view import RunView
from zerofleet.launch.words import duration
from zerofleet.trainer.events import Event
from zerofleet.trainer.run_folder import AttemptRecord

_MOST_HAPPENINGS = 40
"""Of the chain, as many from its end are shown; --json has all."""


@dataclass(frozen=True)
class Happening:
    """`at` in Unix seconds. `kind`: attempt, incident, verdict or state."""

    at: float
    kind: str
    attempt: int
    text: str


@dataclass(frozen=True)
class Explanation:
    """Of one run."""

    run: str
    state: str
    ledger: Ledger
    happenings: tuple[Happening, ...]
    causes: tuple[Cause, ...]

    @staticmethod
    def of(view: RunView) -> Explanation:
        ledger = Ledger.of(history_of(view))
        account = Account(ledger, view.job.train_config(), view.job.cluster)
        return Explanation(view.run.name, view.state, ledger, happenings_of(ledger), tuple(explain(account)))

    def to_dict(self) -> dict[str, Any]:
        best = best_setting(list(self.causes))
        return {
            "run": self.run,
            "state": self.state,
            "happenings": [vars(happening) for happening in self.happenings],
            "ledger": self.ledger.to_dict(),
            "causes": [cause.to_dict() for cause in self.causes],
            "best_setting": best and {"setting": best.setting, "saving_s": best.saving_s, "cause": best.name},
        }

    def text(self) -> str:
        """For a terminal or a pipe."""
        return "\n".join([*self._head(), *self._chain(), *self._times(), *self._why(), ""])

    def _head(self) -> list[str]:
        ledger, history = self.ledger, self.ledger.history
        repeated = f", {len(history.lost)} steps done again" if history.lost else ""
        return [
            f"run {self.run}: {self.state}, {len(history.counted)} steps in {duration(ledger.wall_s)}{repeated}",
            f"goodput {ledger.goodput():.1%}: {len(history.counted)} steps x {history.median_step_s:.3g} s (their median) of {ledger.wall_s:.1f} s",
        ]

    def _chain(self) -> list[str]:
        shown = self.happenings[-_MOST_HAPPENINGS:]
        left_out = len(self.happenings) - len(shown)
        more = [f"  ({left_out} before: --json has them)"] if left_out else []
        lines = [f"  {time.strftime('%H:%M:%S', time.localtime(h.at))}  {h.text}" for h in shown]
        return ["", "what happened", *more, *lines]

    def _times(self) -> list[str]:
        wall_s = max(self.ledger.wall_s, 1e-9)
        rows = [("", "all", *map(str, self.ledger.attempts))]
        for label, seconds in self.ledger.labels.items():
            if seconds > 0:
                each = (f"{times[label]:.1f}" for times in self.ledger.attempts.values())
                rows.append((label, f"{seconds:.1f} s ({seconds / wall_s:.0%})", *each))
        if len(self.ledger.attempts) > 8:  # no terminal is that wide
            rows = [row[:2] for row in rows]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(
                cell.rjust(width) if n else cell.ljust(width)
                for n, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        return ["", "where the time went, in all and by attempt", *(f"  {line}" for line in lines)]

    def _why(self) -> list[str]:
        if not self.causes:
            return ["", "nothing stands out"]
        lines = ["", "why"]
        for number, cause in enumerate(self.causes, start=1):
            lines.append(f"  {number}. {cause.name}: {cause.evidence}")
            lines.append(f"     cost {_seconds(cause.cost_s, self.ledger.wall_s)}{_saving(cause, self.ledger.wall_s)}")
            lines += [f"     {cause.remedy}"] if cause.remedy else []
        best = best_setting(list(self.causes))
        advice = (
            f"{best.setting} would have saved most: about {_seconds(best.saving_s, self.ledger.wall_s)}"
            if best
            else "no setting would have saved any of it"
        )
        return [*lines, "", advice]


def _seconds(seconds: float, wall_s: float) -> str:
    return f"{seconds:.1f} s ({seconds / max(wall_s, 1e-9):.0%} of the run)"


def _saving(cause: Cause, wall_s: float) -> str:
    return (
        f"; {cause.setting} would have saved about {_seconds(cause.saving_s, wall_s)}"
        if cause.setting and cause.saving_s > 0
        else ""
    )


def happenings_of(ledger: Ledger) -> tuple[Happening, ...]:
    """The chain, in its order."""
    return tuple(sorted(_happenings(ledger), key=lambda happening: (happening.at, happening.kind == "attempt")))


def _happenings(ledger: Ledger) -> Iterator[Happening]:
    for record in ledger.history.attempts:
        yield Happening(
            record.claimed_at, "attempt", record.attempt, _attempt(record, ledger.attempts.get(record.attempt))
        )
    for event in ledger.history.events:
        if (text := _text(event)) is not None:
            yield Happening(event.start, event.kind, event.attempt, text.strip().partition("\n")[0])


def _attempt(record: AttemptRecord, seconds: Seconds | None) -> str:
    source = "memory" if record.from_memory else "storage"
    start = (
        f"from step {record.start_step}, in {source}" if record.checkpoint_attempt is not None else "from the beginning"
    )
    lost = f"; {seconds['lost work']:.1f} s of it were lost" if seconds and seconds["lost work"] else ""
    return f"attempt {record.attempt} on {record.world_size} ranks {start}{lost}"


def _text(event: Event) -> str | None:
    data = event.data
    match event.kind:
        case "verdict":
            return str(data["sentence"])
        case "incident":
            return f"incident: {data['message']}"
        case "state" if data["to"] in ("FINISHED", "STOPPED", "FAILED", "RESIZING", "DRAINING"):
            return f"{data['to']}{f': {why}' if (why := data.get('why')) else ''}"
        case _:
            return None
