"""Which backend a command means."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from zerofleet.launch.backends.handle import Backend
from zerofleet.launch.backends.local import LocalDriver, start_driver
from zerofleet.launch.checks import check_machine
from zerofleet.launch.config import JobConfig
from zerofleet.launch.drivers import JobRecord
from zerofleet.launch.planning.before_submit import plan_first
from zerofleet.launch.silos.environment_file import check_environment_files
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.run_folder import RunFolder


class ThisMachine:
    """The driver is a process of this machine, with a Ray of its own unless the job names another."""

    def check(self, job: JobConfig, is_new: bool) -> str:
        check_machine(job)
        check_environment_files(job)
        return plan_first(job) if is_new else ""

    def start(self, run: RunFolder, storage_url: str, overrides: Sequence[str], after: int) -> LocalDriver:
        return start_driver(run, storage_url, overrides)


def choose_backend(arguments: argparse.Namespace, last: JobRecord | None = None) -> Backend:
    """What the options say; where they say nothing, the place of the run's last driver (`last`: it was a job), else this machine."""
    name = arguments.backend or ("ray" if arguments.address else last.backend if last is not None else "local")
    if name == "local":
        if arguments.address:
            raise UserError("--address is the place of a Ray cluster's job API: it goes with --backend ray")
        return ThisMachine()
    address = arguments.address or (last.address if last is not None and last.backend == name else "")
    if not address:
        raise UserError("--backend ray needs --address: the cluster's job API, http(s)://HOST:8265")
    from zerofleet.launch.backends.ray_cluster import RayCluster

    return RayCluster(address)
