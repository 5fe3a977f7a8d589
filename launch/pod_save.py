"""`python -m zerofleet.launch.pod_save RUN --timeout S [--leave]`: the preStop hook of a pod: has the run saved before the pod goes.

With `--leave`, a worker's: the run saves, leaves this node at the end of its step, and goes on where another takes its place. Without, the head's:
it saves. Returns at once when nobody drives the run, which is so when a job has ended and its pods are deleted.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from zerofleet.launch.exit_codes import OK, TIMEOUT
from zerofleet.launch.follow import poll_interval_s
from zerofleet.launch.run_view import RunView
from zerofleet.trainer.errors import NotFoundError, ZerofleetError
from zerofleet.trainer.node_name import node_name
from zerofleet.trainer.run_folder import RunFolder


def main(arguments: list[str] | None = None) -> int:
    """0 when the run has left, or a checkpoint has been committed since, or none was needed; 3 when that did not happen in time."""
    parser = argparse.ArgumentParser(prog="python -m zerofleet.launch.pod_save", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="path or URL of the run folder")
    parser.add_argument("--timeout", type=float, required=True, metavar="S", help="seconds to wait")
    parser.add_argument("--leave", action="store_true", help="have Ray drain this node; RAY_ADDRESS names the cluster")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + options.timeout
    try:
        return save(RunFolder.open(options.run), deadline, options.leave)
    except NotFoundError:
        return OK  # nothing has begun
    except ZerofleetError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


def save(run: RunFolder, deadline: float, leave: bool) -> int:
    """Asks for it and waits until `deadline` (monotonic seconds)."""
    view, before = RunView.of(run), _newest(run)
    if view.progress.is_final or not view.is_driven:
        return OK
    leaves = leave and _gave_notice(deadline - time.monotonic())
    if not leaves:
        run.request("save")
    has_left = False
    while not (has_left if leaves else _newest(run) != before) and not view.progress.is_final:
        if time.monotonic() >= deadline:
            what = "has not left this node" if leaves else f"has no checkpoint newer than step {before}"
            sys.stderr.write(f"error: run {run.name} {what} in time\n")
            return TIMEOUT
        time.sleep(min(poll_interval_s(run), max(0.0, deadline - time.monotonic())))
        for event in view.tail.poll():
            view.progress.apply(event)
            has_left |= event.kind == "state" and event.data["from"] == "RESIZING"
    return OK


def _gave_notice(notice_s: float) -> bool:
    """Whether Ray took it that this node goes. Where it does not, a save is all that can be done."""
    from zerofleet.cluster.ray_nodes import give_notice  # imports Ray

    why = f"Kubernetes ends pod {os.uname().nodename} on node {node_name()}"
    try:
        give_notice(os.environ.get("RAY_ADDRESS", ""), notice_s, why)
    except Exception as error:  # noqa: BLE001 - Ray's client raises what it likes, and there is no time to lose
        sys.stderr.write(f"the run is asked to save only: {error}\n")
        return False
    return True


def _newest(run: RunFolder) -> int:
    """Step of the newest checkpoint; 0 when there is none."""
    return max((checkpoint.step for checkpoint in run.checkpoints()), default=0)


if __name__ == "__main__":
    sys.exit(main())
