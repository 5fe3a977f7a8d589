"""Where a run's time went: every second has exactly one label. Pure.

The time is cut where something begins, and each piece has the label of what began last, so nothing is counted twice or left out.

| label      | from, to |
|---|---|
| prepare    | a driver starts, the data is prepared |
| queue      | the run asks for nodes, all agents are up |
| compile    | an op is built before the run; within a step, what torch.compile took of it |
| start      | ranks are forked, the first evaluation or step begins |
| step       | a step that counts, less what follows; what lies between two steps is the later one's |
| data wait  | of a step, rank 0's waiting for its micro-batches |
| save stall | of a step and the time before it, rank 0's standing still for a save; after the last step, the last save |
| eval       | an evaluation |
| lost work  | a step that was done and does not count, and what was begun of the next when the ranks broke off |
| detect     | the ranks broke off (the first exit, error or lost node; without any, one median step after the last result), it is noticed |
| restart    | a failure is noticed, or a resize begins, the next attempt's first evaluation or step begins |
| end        | rank 0 has done its last step and saved, the run is in its final state: commits, export |

From a final state to the next driver nobody has the run: that time is `away_s`, no part of the wall time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

from zerofleet.cluster.goodput.history import History, end_of
from zerofleet.cluster.verdict import is_failure
from zerofleet.trainer.events import DRIVER, Event
from zerofleet.trainer.run_folder import AttemptRecord

Label = Literal[
    "queue",
    "prepare",
    "compile",
    "start",
    "step",
    "data wait",
    "save stall",
    "eval",
    "lost work",
    "detect",
    "restart",
    "end",
]
LABELS: tuple[Label, ...] = get_args(Label)

_FINAL = ("FINISHED", "STOPPED", "FAILED")
_FAILURES = ("exit", "error", "node_lost")
_PARTS: tuple[tuple[str, Label], ...] = (("stall_s", "save stall"), ("data_s", "data wait"), ("compile_s", "compile"))
"""What a step's data says of it, and the label of that; in this order, the step's own work last."""
_TAIL: dict[str, Label] = {"save": "save stall", "end": "end"}
"""Phases of rank 0 after its last result."""


@dataclass(frozen=True, slots=True)
class Span:
    """Unix seconds. `attempt` is the one that runs, or that is being prepared or mended."""

    start: float
    end: float
    label: Label
    attempt: int

    @property
    def seconds(self) -> float:
        return self.end - self.start


class _Change(NamedTuple):
    """From `at` on the time has this label; None: nobody has the run."""

    at: float
    label: Label | None
    attempt: int


def spans_of(history: History) -> list[Span]:
    """In order, without gaps but where nobody has the run; neighbours have different labels or attempts."""
    changes = sorted([*_driver_changes(history), *_rank_changes(history)], key=lambda change: change.at)
    if not changes:
        return []
    found: list[Span] = []
    for change, after in pairwise([*changes, _Change(history.ended_at, None, 0)]):
        start, end = max(change.at, history.began_at), min(after.at, history.ended_at)
        if change.label is None or end <= start:
            continue
        last = found[-1] if found else None
        if last is not None and (last.label, last.attempt, last.end) == (change.label, change.attempt, start):
            found[-1] = Span(last.start, end, change.label, change.attempt)
        else:
            found.append(Span(start, end, change.label, change.attempt))
    return found


def _driver_changes(history: History) -> Iterator[_Change]:
    """What drivers do, by their starts and the states that they say."""
    driver_starts = [(driver.started_at, None) for driver in history.drivers]
    said = [
        (event.start, event) for event in history.events if event.kind in ("state", "prepare") and event.rank == DRIVER
    ]
    state, is_again = "", False
    for at, event in sorted([*driver_starts, *said], key=lambda item: item[0]):
        if event is None:
            is_again = state not in ("", *_FINAL)  # the driver before died
            state = "PENDING"
            yield _Change(at, "restart" if is_again else "prepare", _next_attempt(history, at))
            continue
        if event.kind == "prepare":
            if state in ("PENDING", "PREPARING"):
                is_op = str(event.data["stage"]).startswith("build ")
                yield _Change(at, "restart" if is_again else "compile" if is_op else "prepare", event.attempt)
            continue
        before, state = state, str(event.data["to"])
        is_again = is_again or state in ("RECOVERING", "RESIZING")
        is_again = is_again or (state == "PREPARING" and before not in ("", "PENDING", *_FINAL))  # it began anew
        if state in _FINAL:
            yield _Change(at, None, event.attempt)
        elif state in ("PREPARING", "PLACING", "STARTING"):
            first: dict[str, Label] = {"PREPARING": "prepare", "PLACING": "queue", "STARTING": "start"}
            yield _Change(at, "restart" if is_again else first[state], event.attempt)
        elif state == "RECOVERING":
            yield _Change(at, "restart", event.attempt)


def _next_attempt(history: History, at: float) -> int:
    return 1 + sum(record.claimed_at < at for record in history.attempts)


def _rank_changes(history: History) -> Iterator[_Change]:
    for record in history.attempts:
        is_torchruns = not any(driver.claimed(record) for driver in history.drivers)
        own = [event for event in history.events_of.get(record.attempt, ()) if event.rank != DRIVER]
        results = history.by_attempt.get(record.attempt, [])
        trained_to = end_of(results[-1]) if results else None
        if is_torchruns:
            yield _Change(record.claimed_at, "start", record.attempt)
        yield from _work(history, record.attempt)
        if any(event.kind in ("finished", "stopped") for event in own):
            since = trained_to or record.claimed_at
            zero = (event for event in own if event.kind == "phase" and event.rank == 0 and event.start >= since)
            yield from (_Change(e.start, _TAIL[e.phase], record.attempt) for e in zero if e.phase in _TAIL)
        elif (noticed_at := _noticed_at(history, record, trained_to)) is not None:
            if trained_to is not None:
                yield _Change(trained_to, "lost work", record.attempt)
            yield _Change(min(noticed_at, _broke_at(history, record, own, trained_to)), "detect", record.attempt)
        if is_torchruns and (history.now is None or record is not history.attempts[-1]):
            last = max([end_of(event) for event in own], default=record.claimed_at)
            yield _Change(max(last, trained_to or last), None, record.attempt)


def _work(history: History, attempt: int) -> Iterator[_Change]:
    """Evaluations and steps, and what a step's time was made of."""
    until: float | None = None
    for item in history.by_attempt.get(attempt, ()):
        before, until = item.start if until is None else until, end_of(item)
        if item.kind == "eval":
            yield _Change(item.start, "eval", attempt)
            continue
        is_lost = not history.counts(item)
        left = (item.start if is_lost else until) - before
        at = before
        for key, label in _PARTS[:1] if is_lost else _PARTS:
            seconds = min(max(left, 0.0), float(item.data.get(key, 0.0)))
            if seconds > 0:
                yield _Change(at, label, attempt)
            at, left = at + seconds, left - seconds
        yield _Change(at, "step", attempt)
        if is_lost:
            yield _Change(item.start, "lost work", attempt)


def _noticed_at(history: History, record: AttemptRecord, trained_to: float | None) -> float | None:
    """When it was known that the attempt had broken off; None: not yet."""
    since = max(record.claimed_at, trained_to or 0.0)
    ends = ("RECOVERING", "PREPARING", *_FINAL)
    known = [e.start for e in history.events if e.kind == "state" and e.data["to"] in ends and e.start > since]
    known += [driver.started_at for driver in history.drivers if driver.started_at > since]
    known += [other.claimed_at for other in history.attempts if other.attempt > record.attempt]
    return min(known, default=None)


def _broke_at(history: History, record: AttemptRecord, own: list[Event], trained_to: float | None) -> float:
    """When the ranks broke off: at the first failure, else a step after they were last heard of."""
    since = max(record.claimed_at, trained_to or 0.0)
    said = history.events_of.get(record.attempt, ())
    failures = [event.start for event in said if event.start >= since and event.kind in _FAILURES and is_failure(event)]
    if failures:
        return min(failures)
    signs = [event.start for event in own if event.kind == "phase" and event.start >= since]
    return max([since + (history.median_step_s if trained_to is not None else 0.0), *signs])
