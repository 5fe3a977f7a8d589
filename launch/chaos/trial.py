"""One run under a fault plan, from its submission to its end: starts the driver, strikes, resumes where a fault calls for it."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from zerofleet.cluster.chaos.injector import Injector, Strike
from zerofleet.cluster.chaos.mounts import Outage
from zerofleet.cluster.faults import MOUNTED, VARIABLE, Fault, format_faults
from zerofleet.cluster.local import reap_leftovers
from zerofleet.launch.backends.local import LocalDriver, start_driver
from zerofleet.launch.chaos.plan import RESUMED
from zerofleet.launch.chaos.proof import Cost, cost_of, problems
from zerofleet.launch.chaos.record import Record
from zerofleet.launch.commands.submit import create_run
from zerofleet.launch.config import JobConfig, override_job
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.run_folder import AttemptRecord, RunFolder

_END_TIMEOUT_S = 20.0
"""How long a driver may take to end once it is told to."""


@dataclass(frozen=True)
class Trial:
    """A run that has ended, or was ended because its time was over."""

    run: RunFolder
    faults: tuple[Fault, ...]
    strikes: tuple[Strike, ...]
    num_resumes: int
    timed_out_s: float | None
    """The limit, when the run was not over within it."""
    wall_s: float
    """From starting the first driver to the end of the last."""
    record: Record

    @property
    def costs(self) -> list[tuple[Strike, Cost]]:
        """Of every fault that struck, in order."""
        struck = sorted((strike for strike in self.strikes if not strike.error), key=lambda strike: strike.at)
        return [(strike, cost_of(self.record, strike.at, strike.arrival.attempt)) for strike in struck]

    def problems(self, reference: Record) -> list[str]:
        """What is not as it has to be, in sentences; empty: the run came through."""
        found = problems(self.record, reference, self.faults, self.strikes)
        if self.timed_out_s is not None:
            found.insert(0, f"the run did not end within {self.timed_out_s:.0f} s")
        return found

    def to_dict(self) -> dict[str, Any]:
        return {
            "run": self.run.name,
            "state": self.record.final_state,
            "faults": [{**strike.to_dict(), **asdict(cost)} for strike, cost in self.costs],
            "attempts": len(self.record.attempts),
            "resumes": self.num_resumes,
            "total_s": self.wall_s,
        }


def named(job: JobConfig, name: str) -> JobConfig:
    """The job under another name. UserError when that is none."""
    return override_job(job, [f"run.name={name}"])


def reference_for(
    trial: Trial, unbroken: Trial, job: JobConfig, recipe: Path, timeout_s: float | None = None
) -> Record:
    """What a trial is to be compared with: the unbroken run, or where it has left samples out, an unbroken run of the name
    NAME-quarantined that leaves them out from the beginning."""
    quarantine = trial.record.quarantine
    if not quarantine or trial.record.final_state != "FINISHED":
        return unbroken.record
    same = named(job, f"{trial.run.name}-quarantined")
    return run_trial(same, recipe, (), timeout_s, _claim_of(unbroken.record.attempts[0], quarantine)).record


def _claim_of(before: AttemptRecord, quarantine: list[list[int]]) -> AttemptRecord:
    """A first attempt that did nothing but leave samples out; its process is one that is gone."""
    return replace(before, quarantine=quarantine, claimed_at=time.time(), token=os.urandom(8).hex())


def run_trial(
    job: JobConfig,
    recipe: Path,
    faults: tuple[Fault, ...] = (),
    timeout_s: float | None = None,
    claim: AttemptRecord | None = None,
    outage: Outage | None = None,
) -> Trial:
    """Runs a job, which has a name, to its end; `claim` is an attempt before its own, `outage` what storage_outage does, where it is not a
    mount. Raises UserError when the name is taken or a fault cannot be made here."""
    assert job.run.name is not None
    run = RunFolder(job.run.storage, job.run.name)
    if run.storage.list():
        raise UserError(f"run {job.run.name!r} exists already in {job.run.storage}: choose another run.name")
    began, num_resumes = time.monotonic(), 0
    with Injector(run, faults, job.cluster.address, outage) as injector:
        create_run(job, recipe)
        if claim is not None:
            run.storage.create(f"attempts/{claim.attempt:04d}.json", json.dumps(asdict(claim)).encode())
        while True:
            is_over = _drive(job, run, injector, None if timeout_s is None else began + timeout_s)
            if not is_over or _resumes_called_for(injector) <= num_resumes:
                break
            injector.lift()
            num_resumes += 1
    wall_s = time.monotonic() - began
    timed_out_s = None if is_over else timeout_s
    return Trial(run, faults, tuple(injector.strikes), num_resumes, timed_out_s, wall_s, Record.read(run))


def _drive(job: JobConfig, run: RunFolder, injector: Injector, deadline: float | None) -> bool:
    """One driver from its start to its end. False when the deadline (monotonic) came first, and it was ended."""
    environment = {VARIABLE: format_faults(injector.faults) if injector.faults else ""}
    driver = start_driver(run, job.run.storage, environment=environment)
    try:
        return driver.wait(None if deadline is None else max(0.0, deadline - time.monotonic())) is not None
    finally:
        _make_sure_of_the_end(driver)


def _make_sure_of_the_end(driver: LocalDriver) -> None:
    """Nothing that this process has started lives on, whatever was raised."""
    if driver.wait(0.0) is None:
        driver.end(_END_TIMEOUT_S)
        reap_leftovers()


def _resumes_called_for(injector: Injector) -> int:
    """How many of the faults that struck end the driver, or keep it from saving until somebody helps."""
    return sum(
        strike.fault.kind in RESUMED or (strike.fault.kind in MOUNTED and strike.fault.for_s is None)
        for strike in injector.strikes
        if not strike.error
    )
