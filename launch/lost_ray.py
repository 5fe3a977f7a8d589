"""When a run's own Ray is lost, its driver begins anew: the same process, and in it the program from its first line.

A process that has lost the head of its Ray can do nothing with Ray any more, not even leave it. What counts lies elsewhere: the
run folder, and the nodes' memory, which the next agents adopt.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

from zerofleet.cluster.policy.failure import Decision, Failure, decide
from zerofleet.cluster.verdict import Verdict
from zerofleet.trainer.events import Event

_LOST = "own Ray"
"""What a verdict about it has under `lost`."""


def judge_loss(events: Iterable[Event], since: float, code: int, step: int, max_failures: int) -> dict[str, Any]:
    """The data of the verdict about a loss: whether the driver begins anew. Pure.

    `events` are the run's so far, `since` is when this driver's process began (Unix seconds), `code` the head's exit code, `step` the
    newest step. Losses without a new step between them count against cluster.max_failures.
    """
    steps = [
        event.step
        for event in events
        if event.kind == "verdict" and event.data.get("lost") == _LOST and event.start >= since
    ]
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    verdict = Verdict("node", f"the run's own Ray was lost: its head process {how}")
    decision: Decision = decide([Failure(verdict, reached, 0) for reached in [*steps, step]], max_failures)
    outcome = "Starting another" if decision.action == "retry" else "Stopping"
    return {
        "class": verdict.kind,
        "action": decision.action,
        "sentence": f"{verdict.sentence}. {outcome}: {decision.reason}",
        "rank": None,
        "node": None,
        "lost": _LOST,
    }


def begin_anew() -> NoReturn:
    """Replaces this program by itself, with the same arguments. The process keeps its number and its time of birth, and so
    its claims."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
