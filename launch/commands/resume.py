"""`zerofleet resume RUN [key=value ...]`: goes on with a run from its newest checkpoint that verifies."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from zerofleet.launch.backends.choice import choose_backend
from zerofleet.launch.backends.options import add_place, add_profile
from zerofleet.launch.checks import check_job
from zerofleet.launch.commands.submit import probe_storage
from zerofleet.launch.config import JobConfig, frozen_changes, override_job, resolve_overrides
from zerofleet.launch.exit_codes import OK
from zerofleet.launch.run_view import RunView
from zerofleet.launch.watch import Watch
from zerofleet.launch.words import command, run_argument
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.run_folder import RunFolder

if TYPE_CHECKING:
    from zerofleet.launch.commands.types import Verbs


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser("resume", help="go on with a run")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change from here on")
    parser.add_argument("--detach", action="store_true", help="return when the run has started")
    parser.add_argument("--json", action="store_true", help="one JSON line per event instead of progress")
    add_place(parser, "where its last driver ran", namespace=True)
    add_profile(parser)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.backend == "kuberay":
        from zerofleet.launch.backends import kuberay_verbs

        return kuberay_verbs.resume(arguments)
    view = RunView.of(RunFolder.open(arguments.run))
    overrides = resolve_overrides(arguments.overrides)
    job = resumed_job(view, overrides)
    _check_free(view)
    if job.train.steps < view.progress.step:
        raise UserError(
            f"run {view.run.name} has done {view.progress.step} steps, more than train.steps={job.train.steps}: it cannot go "
            f"back. Set train.steps to {view.progress.step} or more; for the weights of an earlier step, submit a new run "
            "with run.init_from"
        )
    if view.state == "FINISHED" and job.train.steps == view.progress.step:
        sys.stdout.write(
            f"run {view.run.name} is finished: step {view.progress.step} of {job.train.steps}. To train on: "
            f"{command('resume', run_argument(view.run), f'train.steps={2 * job.train.steps}')}\n"
        )
        return OK
    check_job(job)
    backend = choose_backend(arguments, view.submitted.record if view.submitted is not None else None)
    if (found := backend.check(job, is_new=False)) and not arguments.json:
        sys.stdout.write(f"{found}\n")
    probe_storage(job.run.storage)
    view.progress.new_driver(job.train.steps)
    driver = backend.start(view.run, job.run.storage, overrides, after=view.driver.number if view.driver else 0)
    watch = Watch(view.run, driver, view.tail, view.progress, arguments.json)
    return watch.leave() if arguments.detach else watch.follow()


def _check_free(view: RunView) -> None:
    """Raises UserError when somebody trains the run."""
    name = run_argument(view.run)
    if view.torchrun is not None and view.is_torchrun:
        raise UserError(
            f"run {view.run.name} is trained by torchrun: `kill {view.torchrun.pid}` on {view.torchrun.host} makes it save "
            "and end; then resume"
        )
    if view.is_driven:
        raise UserError(
            f"run {view.run.name} is running ({view.describe_driver()}): see {command('status', name)}, "
            f"or {command('stop', name)} before resuming"
        )


def resumed_job(view: RunView, overrides: list[str]) -> JobConfig:
    """The run's job with the new overrides. UserError when they change what is frozen."""
    job = override_job(view.job, overrides)
    if changes := frozen_changes(view.job, job):
        raise UserError(
            f"run {view.run.name} cannot be resumed with this: {'; '.join(changes)}. The sample order, the ledger and the "
            "weights of the run depend on it: submit a new run instead (run.init_from starts from this one's weights)"
        )
    return job
