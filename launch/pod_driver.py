"""`python -m zerofleet.launch.pod_driver JOB`: what a Ray job runs on the head of its own cluster.

Creates the run folder, or goes on with it when an earlier life of the job has created it, and drives the run to its end. A pod
that takes another's place cannot see whether its driver still lives, only that it is silent; so it waits for that.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

from zerofleet.launch.config import JobConfig, parse_job
from zerofleet.launch.driver import drive
from zerofleet.launch.recipe_text import read_text
from zerofleet.launch.run_view import RunView
from zerofleet.trainer.driver_records import OTHER_HOST_SILENCE_S
from zerofleet.trainer.errors import UserError, ZerofleetError
from zerofleet.trainer.run_folder import RunFolder

_LOOK_S = 5.0
_PATIENCE_S = 3 * OTHER_HOST_SILENCE_S
"""Whoever still drives the run after that is alive."""

_log = logging.getLogger("zerofleet.pod_driver")


def main(arguments: list[str] | None = None) -> int:
    """Exit codes as the driver's."""
    parser = argparse.ArgumentParser(prog="python -m zerofleet.launch.pod_driver", description=__doc__)
    parser.add_argument("job", type=Path)
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    try:
        job = parse_job(read_text(options.job, "job"), str(options.job))
        run = take_run(job)
        wait_for_silence(run, _PATIENCE_S)
        return drive(job.run.storage, run.name)
    except ZerofleetError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


def take_run(job: JobConfig) -> RunFolder:
    """The job's run folder, created unless it is there. UserError when it is another job's."""
    if job.run.name is None:
        raise UserError("run.name is not set: a job that is started again would not find its run. Set it")
    run = RunFolder(job.run.storage, job.run.name)
    if not run.storage.exists("job.yaml"):
        run.create(job.to_yaml())
    elif run.job_yaml() != job.to_yaml():
        raise UserError(
            f"run {run.name!r} exists already in {run.storage.url} with another job.yaml: choose another run.name, or give the "
            "recipe that the run began with"
        )
    return run


def wait_for_silence(run: RunFolder, patience_s: float) -> None:
    """Returns when the run's last driver says nothing any more, or after `patience_s` seconds: then the claim says who it is."""
    deadline, is_said = time.monotonic() + patience_s, False
    while RunView.of(run).is_driven and time.monotonic() < deadline:
        if not is_said:
            _log.info("run %s was driven a moment ago: waiting until its driver is silent", run.name)
            is_said = True
        time.sleep(_LOOK_S)


if __name__ == "__main__":
    sys.exit(main())
