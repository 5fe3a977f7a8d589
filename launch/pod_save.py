"""`python -m zerofleet.launch.pod_save RUN --timeout S`: the preStop hook of a pod: has the run saved before the pod goes.

Returns at once when nobody drives the run, which is so when a job has ended and its pods are deleted. The run goes on: pods that
are left, and those that take this one's place, start from what was saved.
"""

from __future__ import annotations

import argparse
import sys
import time

from zerofleet.launch.exit_codes import OK, TIMEOUT
from zerofleet.launch.follow import poll_interval_s
from zerofleet.launch.run_view import RunView
from zerofleet.trainer.errors import NotFoundError, ZerofleetError
from zerofleet.trainer.run_folder import RunFolder


def main(arguments: list[str] | None = None) -> int:
    """0 when a checkpoint has been committed since, or none was needed; 3 when there was none in time."""
    parser = argparse.ArgumentParser(prog="python -m zerofleet.launch.pod_save", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="path or URL of the run folder")
    parser.add_argument("--timeout", type=float, required=True, metavar="S", help="seconds to wait")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + options.timeout
    try:
        return save(RunFolder.open(options.run), deadline)
    except NotFoundError:
        return OK  # nothing has begun
    except ZerofleetError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


def save(run: RunFolder, deadline: float) -> int:
    """Asks for a save and waits for a new checkpoint until `deadline` (monotonic seconds)."""
    view, before = RunView.of(run), _newest(run)
    if view.progress.is_final or not view.is_driven:
        return OK
    run.request("save")
    while _newest(run) == before and not view.progress.is_final:
        if time.monotonic() >= deadline:
            sys.stderr.write(f"error: run {run.name} has no checkpoint newer than step {before} in time\n")
            return TIMEOUT
        time.sleep(min(poll_interval_s(run), max(0.0, deadline - time.monotonic())))
        for event in view.tail.poll():
            view.progress.apply(event)
    return OK


def _newest(run: RunFolder) -> int:
    """Step of the newest checkpoint; 0 when there is none."""
    return max((checkpoint.step for checkpoint in run.checkpoints()), default=0)


if __name__ == "__main__":
    sys.exit(main())
