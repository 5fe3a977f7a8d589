"""`zerofleet submit RECIPE`: checks the job, takes the run's name, starts its driver and follows it."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from zerofleet.launch.backends.choice import choose_backend
from zerofleet.launch.backends.handle import Backend, DriverHandle
from zerofleet.launch.backends.options import add_place, add_profile
from zerofleet.launch.checks import check_job
from zerofleet.launch.config import JobConfig, load_job
from zerofleet.launch.exit_codes import OK
from zerofleet.launch.follow import EventTail
from zerofleet.launch.progress import Progress
from zerofleet.launch.run_view import RunView
from zerofleet.launch.silos.arithmetic import describe_job
from zerofleet.launch.watch import Watch
from zerofleet.trainer.errors import StorageError, UserError, ZerofleetError
from zerofleet.trainer.run_folder import RunFolder
from zerofleet.trainer.storage import Storage

if TYPE_CHECKING:
    from zerofleet.launch.commands.types import Verbs


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser("submit", help="train: from a recipe to a run folder")
    parser.add_argument("recipe", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change, such as train.steps=20")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved job and the batch arithmetic only")
    parser.add_argument("--detach", action="store_true", help="return when the run has started")
    parser.add_argument("--json", action="store_true", help="one JSON line per event instead of progress")
    add_place(parser, "this machine")
    add_profile(parser)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    job = load_job(arguments.recipe, arguments.overrides)
    check_job(job)
    if arguments.dry_run:
        arithmetic = "".join(f"# {line}\n" for line in describe_job(job))
        sys.stdout.write(f"{job.to_yaml()}\n{arithmetic}")
        return OK
    if arguments.backend == "kuberay":
        from zerofleet.launch.backends import kuberay

        return kuberay.submit(arguments, job)
    backend = choose_backend(arguments)
    found = backend.check(job, is_new=True)
    probe_storage(job.run.storage)
    if found and not arguments.json:
        sys.stdout.write(f"{found}\n")
    if job.run.init_from is not None:
        from zerofleet.trainer.init_from import resolve_init_from  # needs numpy, which the light install lacks

        resolve_init_from(job.run.init_from, job.run.storage)
    folder, job = create_run(job, Path(arguments.recipe))
    driver = _start(backend, folder, job)
    facts = {"kind": "run", "run": folder.name, "folder": folder.storage.path()}
    sys.stdout.write(json.dumps(facts) if arguments.json else f"run {folder.name} in {folder.storage.path()}")
    sys.stdout.write("\n")
    sys.stdout.flush()
    watch = Watch(folder, driver, EventTail(folder), Progress(job.train.steps), arguments.json)
    return watch.leave() if arguments.detach else watch.follow()


def _start(backend: Backend, folder: RunFolder, job: JobConfig) -> DriverHandle:
    """Starts the driver, or leaves nothing behind that a second try would trip over."""
    try:
        return backend.start(folder, job.run.storage, (), after=0)
    except ZerofleetError:
        folder.storage.remove("")
        raise


def probe_storage(url: str) -> None:
    """Raises UserError when run folders cannot be written there: better now than after the data was prepared."""
    try:
        Storage(url).probe_writable()
    except StorageError as error:
        raise UserError(f"run.storage={url!r} cannot be used: {error}") from error


def create_run(job: JobConfig, recipe: Path) -> tuple[RunFolder, JobConfig]:
    """Takes the run's name and writes job.yaml. UserError when the name is taken."""
    if job.run.name is not None:
        return _create(job, job.run.name)
    stem = re.sub(r"[^a-z0-9._-]+", "-", recipe.stem.lower()).strip("._-")[:30] or "run"
    name = f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    if RunFolder(job.run.storage, name).storage.exists("job.yaml"):  # two in one second
        name += f"-{time.time_ns() % 10**6:06d}"
    return _create(job, name)


def _create(job: JobConfig, name: str) -> tuple[RunFolder, JobConfig]:
    named = job.model_copy(update={"run": job.run.model_copy(update={"name": name})})
    folder = RunFolder(job.run.storage, name)
    if folder.storage.exists("job.yaml") and (view := RunView.of(folder)).failed_by_mistake:
        # A mistake that only the driver or the ranks could see: mended, the recipe may have its name.
        sys.stderr.write(
            f"run {name} failed before its first checkpoint ({view.progress.user_error}): this run takes its place, its "
            "folder is removed\n"
        )
        folder.storage.remove("")
    folder.create(named.to_yaml())
    return folder, named
