"""`python -m zerofleet.launch.pod_driver JOB`: what a Ray job runs on the head of its own cluster.

Creates the run folder, or goes on with it when an earlier life of the job has created it, and drives the run to its end. A pod
that takes another's place cannot see whether its driver still lives, only that it is silent; so it waits for that.
Beside JOB, where the kubelet keeps a ConfigMap up to date, may lie the overrides of a resume, and later a request to stop.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import yaml

from zerofleet.k8s.names import OVERRIDES_FILE, STOP_FILE
from zerofleet.launch.config import JobConfig, parse_job
from zerofleet.launch.driver import drive
from zerofleet.launch.drivers import driver_log, driver_records
from zerofleet.launch.event_log_lines import FORMAT
from zerofleet.launch.recipe_text import read_text
from zerofleet.launch.run_view import RunView
from zerofleet.trainer.driver_records import OTHER_HOST_SILENCE_S
from zerofleet.trainer.errors import StorageError, UserError, ZerofleetError
from zerofleet.trainer.run_folder import RunFolder

_LOOK_S = 5.0
_STOP_LOOK_S = 1.0
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
        keep_log(run)
        pass_on_stop(options.job.parent / STOP_FILE, run)
        return drive(job.run.storage, run.name, overrides_in(options.job.parent / OVERRIDES_FILE))
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
    elif parse_job(run.job_yaml(), f"{run.storage.url}/job.yaml") != job:  # an older version wrote fewer fields
        raise UserError(
            f"run {run.name!r} exists already in {run.storage.url} with another job.yaml: choose another run.name, or give the "
            "recipe that the run began with"
        )
    return run


def overrides_in(file: Path) -> list[str]:
    """Of a resume; none when there is no such file."""
    return [str(override) for override in yaml.safe_load(file.read_text())] if file.exists() else []


def keep_log(run: RunFolder) -> None:
    """From here on what this process writes is kept in the run folder too: a pod's log is gone with the pod. Where the folder is remote,
    the pod's log is all there is."""
    if not run.storage.is_local:
        return
    number = max((record.number for record in driver_records(run)), default=0) + 1
    log = run.storage.local_path(driver_log(number))
    log.parent.mkdir(parents=True, exist_ok=True)
    # It outlives a signal to all of this job's processes, and ends with the last of those that write.
    tee = subprocess.Popen(
        ["tee", "-a", str(log)], stdin=subprocess.PIPE, start_new_session=True, preexec_fn=_ignore_signals
    )
    assert tee.stdin is not None
    for descriptor in (1, 2):
        os.dup2(tee.stdin.fileno(), descriptor)
    tee.stdin.close()


def _ignore_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def pass_on_stop(file: Path, run: RunFolder) -> None:
    """Looks, in a thread, for the request to stop that the cluster's API takes, and leaves it where the driver looks for requests. It holds
    for all lives of the job: who asked for a stop did not ask for another pod."""

    def look() -> None:
        is_left = False
        while not is_left:
            time.sleep(_STOP_LOOK_S)
            is_left = file.exists() and _leave_request(run)

    threading.Thread(target=look, name="stop", daemon=True).start()


def _leave_request(run: RunFolder) -> bool:
    """Whether it could be left: this process has to have claimed the run, and storage may be down for a while."""
    try:
        # What was asked for before the claim was for another driver.
        if not any(record.is_this_process for record in driver_records(run)[-1:]):
            return False
        run.request("stop")
    except StorageError as error:
        _log.warning("asked to stop, by the cluster's API; storage does not take it yet: %s", error)
        return False
    _log.info("asked to stop, by the cluster's API")
    return True


def wait_for_silence(run: RunFolder, patience_s: float) -> None:
    """Returns when the run's last driver says nothing any more, or after `patience_s` seconds: then the claim says who it is."""
    deadline, is_said = time.monotonic() + patience_s, False
    while RunView.of(run).is_driven and time.monotonic() < deadline:
        if not is_said:
            _log.info("run %s was driven a moment ago: waiting until its driver is silent", run.name)
            is_said = True
        time.sleep(_LOOK_S)


if __name__ == "__main__":
    os.environ[FORMAT] = "json"
    sys.exit(main())
