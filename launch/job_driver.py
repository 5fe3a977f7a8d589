"""`python -m zerofleet.launch.job_driver STORAGE_URL RUN --number N --after M [--override key=value ...]`: a job of a Ray cluster that
drives a run on that cluster.

What it writes goes to the job's log, which Ray keeps as long as the cluster lives, and to the run folder.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TextIO, cast

from zerofleet.launch.claims import Handed
from zerofleet.launch.driver import drive
from zerofleet.launch.drivers import driver_log
from zerofleet.launch.exit_codes import RUN_FAILED
from zerofleet.trainer.errors import StorageError, UserError, ZerofleetError
from zerofleet.trainer.run_folder import RunFolder
from zerofleet.trainer.storage import storage_errors


def main(arguments: list[str] | None = None) -> int:
    """Exit codes as the driver's."""
    parser = argparse.ArgumentParser(prog="python -m zerofleet.launch.job_driver", description=__doc__)
    parser.add_argument("storage_url")
    parser.add_argument("run")
    parser.add_argument("--number", type=int, required=True, metavar="N", help="this driver's number")
    parser.add_argument(
        "--after", type=int, required=True, metavar="M", help="the last driver that is known to be gone"
    )
    parser.add_argument("--override", action="append", default=[], metavar="key=value")
    options = parser.parse_args(arguments)
    try:
        if not (address := os.environ.get("RAY_ADDRESS", "")):
            raise UserError("RAY_ADDRESS is not set: this program is a job of a Ray cluster, which sets it")
        handed = Handed(options.number, options.after, address)
        with log_in_run_folder(RunFolder(options.storage_url, options.run), options.number):
            return _drive(options.storage_url, options.run, options.override, handed)
    except ZerofleetError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


def _drive(storage_url: str, name: str, overrides: list[str], handed: Handed) -> int:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    try:
        return drive(storage_url, name, overrides, handed=handed)
    except ZerofleetError as error:
        sys.stderr.write(f"error: {error}\n")  # inside: it belongs into the run folder too
        return error.exit_code
    except Exception:  # noqa: BLE001 - likewise, and then the job ends as it would have
        traceback.print_exc()
        return RUN_FAILED


class _Tee:
    """Writes to two streams; one that fails (a full disk) does not keep the other from being written."""

    def __init__(self, first: TextIO, second: IO[str]) -> None:
        self._streams = (first, second)

    def write(self, text: str) -> int:
        for stream in self._streams:
            with contextlib.suppress(OSError):
                stream.write(text)
        return len(text)

    def flush(self) -> None:
        for stream in self._streams:
            with contextlib.suppress(OSError):
                stream.flush()

    def fileno(self) -> int:
        return self._streams[0].fileno()

    def isatty(self) -> bool:
        return False


@contextlib.contextmanager
def log_in_run_folder(run: RunFolder, number: int) -> Iterator[None]:
    """What this program writes is also kept as the driver's log: line by line where the run folder is a folder, at the end where
    it is an object store."""
    local = run.storage.is_local
    folder = run.storage.local_path("logs") if local else Path(tempfile.mkdtemp(prefix=f"zerofleet-{run.name}-"))
    with storage_errors("creating", str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / Path(driver_log(number)).name
    out, err = sys.stdout, sys.stderr
    with path.open("a", buffering=1) as kept:
        sys.stdout, sys.stderr = cast(TextIO, _Tee(out, kept)), cast(TextIO, _Tee(err, kept))
        try:
            yield
        finally:
            sys.stdout, sys.stderr = out, err
    if not local:
        try:
            run.storage.create(driver_log(number), path.read_bytes())
        except (StorageError, FileExistsError) as error:
            sys.stderr.write(f"the driver's log stays in {path}: {error}\n")


if __name__ == "__main__":
    sys.exit(main())
