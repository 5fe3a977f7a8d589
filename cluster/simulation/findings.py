"""What a simulated run came to: a record for JSON. What was timed here is apart from what is simulated, which a seed determines."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from zerofleet.cluster.goodput.history import History
from zerofleet.cluster.simulation.run import SimulatedRun
from zerofleet.cluster.simulation.scenario import Scenario, closed_forms, described


def simulate(scenario: Scenario, clock: Callable[[], float] = time.process_time) -> dict[str, Any]:
    """One run. `clock` times the controller."""
    with tempfile.TemporaryDirectory(prefix="zerofleet-simulation-") as folder:
        run = SimulatedRun(scenario, Path(folder), clock)
        began = clock()
        ledger = run.run()
        took_s = clock() - began
    history, wall_s = ledger.history, ledger.wall_s
    gaps = [after - before for before, after in pairwise(run.saved_at)]
    return {
        "is_simulated": True,
        "scenario": described(scenario),
        "closed_forms": closed_forms(scenario),
        "simulated": {
            "wall_s": wall_s,
            "state": run.controller.state.value,
            "why": run.controller.why,
            "goodput": ledger.goodput(scenario.costs.step_s),
            "shares": {label: seconds / wall_s for label, seconds in ledger.labels.items() if seconds},
            "counted_steps": len(history.counted),
            "repeated_steps": len(history.lost),
            "failures": dict(sorted(run.failures.items())),
            "restarts": dict(sorted(run.tiers.items())),
            "median_restart_s": _median_restart_s(history),
            "saves": len(run.saved_at),
            "median_save_gap_s": statistics.median(gaps) if gaps else None,
            "smallest_world": min(record.world_size for record in history.attempts),
        },
        "measured_here": {
            "poll_s": _spread(run.looks_s["all ranks"]),
            "verdict_and_restart_s": _spread(run.looks_s["recovering"]),
            "simulation_s": took_s,
        },
    }


def _median_restart_s(history: History) -> float | None:
    """From the last result of a broken attempt to the first of a later one."""
    ends, found = 0.0, []
    for _, results in sorted(history.by_attempt.items()):
        if ends and results:
            found.append(results[0].start + results[0].duration_s - ends)
        ends = results[-1].start + results[-1].duration_s if results else ends
    return statistics.median(found) if found else None


def _spread(seconds: list[float]) -> dict[str, float] | None:
    return {"median": statistics.median(seconds), "most": max(seconds), "count": len(seconds)} if seconds else None
