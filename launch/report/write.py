"""Makes the report of a run folder, and leaves it there."""

from __future__ import annotations

import logging

from zerofleet.launch.explanation import Explanation
from zerofleet.launch.report.page import Report, page
from zerofleet.launch.run_view import RunView
from zerofleet.trainer.run_folder import REPORT, RunFolder

_log = logging.getLogger("zerofleet.driver")


def write_report(run: RunFolder) -> str:
    """Replaces the one that is there. Returns its place. Raises StorageError."""
    view = RunView.of(run)
    job = view.job
    report = Report(Explanation.of(view), job.train.steps, job.train.global_batch_size, job.to_yaml())
    run.storage.replace(REPORT, page(report).encode())
    return run.storage.path(REPORT)


def leave_report(run: RunFolder) -> None:
    """At the end of a run, which it never fails."""
    try:
        write_report(run)
    except Exception as error:  # noqa: BLE001 - a report is no part of a run's outcome
        _log.warning("the report was not written: %s; `zerofleet report %s` tries again", error, run.name)
