"""`zerofleet logs RUN [-f] [--rank N] [--attempt N]`: the driver's log, or one rank's."""

from __future__ import annotations

import argparse
import re
import sys
import time
from typing import TYPE_CHECKING

from zerofleet.launch.backends.jobs import ASK_INTERVAL_S, DriverJob
from zerofleet.launch.backends.options import add_backend
from zerofleet.launch.drivers import driver_log, driver_records
from zerofleet.launch.exit_codes import OK
from zerofleet.launch.follow import poll_interval_s
from zerofleet.launch.run_view import RunView
from zerofleet.trainer.errors import NotFoundError, UserError
from zerofleet.trainer.run_folder import RunFolder

if TYPE_CHECKING:
    from zerofleet.launch.commands.types import Verbs


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser("logs", help="the driver's log, or a rank's")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the run ends, over restarts too")
    parser.add_argument("--rank", type=int, metavar="N", help="the log of this rank instead of the driver's")
    parser.add_argument("--attempt", type=int, metavar="N", help="with --rank: of this attempt (default: the newest)")
    add_backend(parser, namespace=True)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.attempt is not None and arguments.rank is None:
        raise UserError("--attempt needs --rank: the driver's log spans all attempts")
    if arguments.backend == "kuberay":
        from zerofleet.launch.backends import kuberay_verbs

        return kuberay_verbs.logs(arguments)
    folder = RunFolder.open(arguments.run)
    view = RunView.of(folder)
    job = view.submitted if arguments.rank is None else None
    if job is not None and not folder.storage.exists(driver_log(job.record.number)):
        return _show_job(view, job, arguments.follow)
    path, offset = "", 0  # empty: there is no log yet
    while True:
        is_over = not arguments.follow or not view.is_driven  # asked before reading, so that the end is read too
        offset += _show(folder, path, offset) if path else 0
        try:
            newer = newest_log(folder, arguments.rank, arguments.attempt)
        except NotFoundError as error:
            # A new attempt has no logs until its ranks are up: until then the old one's is the newest.
            if not path and (is_over or not _may_come(view, arguments.rank, arguments.attempt)):
                raise _explained(error, view, arguments.attempt) from error
            newer = path
        if newer != path:
            if path:
                sys.stdout.write(f"\n==> {newer} <==\n")
            path, offset = newer, 0
        elif is_over:
            return OK
        else:
            time.sleep(poll_interval_s(folder))
            for event in view.tail.poll():
                view.progress.apply(event)


def _show_job(view: RunView, job: DriverJob, follow: bool) -> int:
    """The driver's log as the cluster has it: into an object store it comes at the driver's end only."""
    shown = 0
    while True:
        is_over = not follow or not view.is_driven
        text = job.log()
        sys.stdout.write(text[shown:])
        sys.stdout.flush()
        if is_over:
            return OK
        shown = len(text)
        time.sleep(ASK_INTERVAL_S)


def _show(folder: RunFolder, path: str, offset: int) -> int:
    """Writes what the log holds from `offset` on. Returns its number of bytes."""
    size = folder.storage.size(path)
    data = folder.storage.read(path, offset, size) if size > offset else b""
    sys.stdout.write(data.decode(errors="replace"))
    sys.stdout.flush()
    return len(data)


def _explained(error: NotFoundError, view: RunView, attempt: int | None) -> NotFoundError:
    """Says why an attempt of torchrun has no logs."""
    wanted = attempt if attempt is not None else view.attempt
    if wanted not in view.progress.torchrun_attempts:
        return error
    return NotFoundError(
        f"{error}: attempt {wanted} was started with torchrun, whose ranks write to its terminal (or to torchrun's --log-dir)"
    )


def _may_come(view: RunView, rank: int | None, attempt: int | None) -> bool:
    """Whether a log that is missing may appear while the run goes on: the newest one of a rank that the job has."""
    return rank is not None and attempt is None and 0 <= rank < view.job.cluster.world_size


def newest_log(folder: RunFolder, rank: int | None, attempt: int | None) -> str:
    """Path of the newest driver's log, or of a rank's in an attempt. NotFoundError says which logs there are."""
    names = folder.storage.list("logs")
    if rank is None:
        logs = [name for name in names if re.fullmatch(r"driver-\d+\.log", name)]
        if not logs:
            remote = "" if folder.storage.is_local or not driver_records(folder) else "; it lies on the driver's host"
            raise NotFoundError(f"run {folder.name!r} has no driver log{remote}")
        return f"logs/{logs[-1]}"
    attempts = [name for name in names if re.fullmatch(r"attempt-\d+", name)]
    wanted = f"attempt-{attempt:04d}" if attempt is not None else (attempts[-1] if attempts else "")
    if wanted not in attempts:
        raise NotFoundError(f"run {folder.name!r} has no logs of {wanted or 'any attempt'}; {_there(attempts)}")
    ranks = [name for name in folder.storage.list(f"logs/{wanted}") if name.startswith("rank-")]
    name = f"rank-{rank:05d}.log"
    if name not in ranks:
        raise NotFoundError(f"{wanted} of run {folder.name!r} has no log of rank {rank}; {_there(ranks)}")
    return f"logs/{wanted}/{name}"


def _there(names: list[str]) -> str:
    return f"there are {', '.join(names)}" if names else "there are none yet"
