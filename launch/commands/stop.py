"""`zerofleet stop RUN`: asks for a stop and waits until its checkpoint is durable."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from zerofleet.launch.backends.options import add_backend
from zerofleet.launch.exit_codes import OK, RUN_FAILED, TIMEOUT
from zerofleet.launch.follow import poll_interval_s
from zerofleet.launch.run_view import RunView
from zerofleet.launch.words import command, run_argument
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.run_folder import RunFolder

if TYPE_CHECKING:
    from zerofleet.launch.commands.types import Verbs


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser("stop", help="stop a run with a checkpoint")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="how long to wait (default: cluster.stop_timeout_s)"
    )
    add_backend(parser, namespace=True)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.backend == "kuberay":
        from zerofleet.launch.backends import kuberay_verbs

        return kuberay_verbs.stop(arguments)
    view = RunView.of(RunFolder.open(arguments.run))
    if view.torchrun is not None and view.is_torchrun:
        raise UserError(
            f"run {view.run.name} is trained by torchrun, which cannot be asked: `kill {view.torchrun.pid}` on "
            f"{view.torchrun.host} makes it save and end"
        )
    if not view.is_driven:
        return _not_running(view)
    if view.submitted is not None and not view.has_begun:
        view.submitted.end()
        sys.stdout.write(
            f"run {view.run.name} had not begun to be driven: its job {view.submitted.record.job} was ended\n"
        )
        return OK
    timeout_s = view.job.cluster.stop_timeout_s if arguments.timeout is None else arguments.timeout
    view.run.request("stop")
    sys.stdout.write(f"asked run {view.run.name} to stop; waiting for its checkpoint (at most {timeout_s:g} s)\n")
    sys.stdout.flush()
    deadline = time.monotonic() + timeout_s
    while view.is_driven and time.monotonic() < deadline:
        time.sleep(poll_interval_s(view.run))
        for event in view.tail.poll():
            view.progress.apply(event)
    if view.is_driven:
        sys.stderr.write(
            f"error: run {view.run.name} is {view.state} {timeout_s:g} s after it was asked to stop; the request stands. "
            f"Wait longer with --timeout, or see {command('logs', run_argument(view.run))}\n"
        )
        return TIMEOUT
    return _ended(view)


def _not_running(view: RunView) -> int:
    if view.progress.is_final:
        sys.stdout.write(f"run {view.run.name} is {view.state} already: there is nothing to stop\n")
        return OK
    sys.stderr.write(f"error: run {view.run.name} does not run: {view.describe_driver()}. {_go_on(view)}\n")
    return RUN_FAILED


def _ended(view: RunView) -> int:
    for event in view.tail.poll():  # what it wrote between the last look and its end
        view.progress.apply(event)
    if not view.progress.is_final:
        sys.stderr.write(
            f"error: the driver of run {view.run.name} died before it had stopped the run. {_go_on(view)}\n"
        )
        return RUN_FAILED
    sys.stdout.write(f"run {view.run.name} is {view.state} at step {view.progress.step}. {_go_on(view)}\n")
    is_whole = view.progress.exit_code == 0 or _newest(view) >= view.progress.step
    if view.state == "FINISHED" or (view.state == "STOPPED" and is_whole):
        return OK
    sys.stderr.write(f"error: {view.progress.why}\n")
    return RUN_FAILED


def _newest(view: RunView) -> int:
    """Step of the newest checkpoint; 0 when there is none."""
    return max((checkpoint.step for checkpoint in view.run.checkpoints()), default=0)


def _go_on(view: RunView) -> str:
    newest = f"The newest checkpoint is of step {step}" if (step := _newest(view)) else "There is no checkpoint"
    if view.state == "FINISHED":
        return newest
    return f"{newest}; go on with: {command('resume', run_argument(view.run))}"
