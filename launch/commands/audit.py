"""`zerofleet audit RUN`: proves from the ledger and the prepared data that every sample was fed exactly once, or names what was not."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from zerofleet.launch.exit_codes import OK, RUN_FAILED
from zerofleet.launch.silos.jobs import FOLDER, silo_runs
from zerofleet.launch.words import duration
from zerofleet.trainer.data.quarantine import named
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.run_folder import RunFolder

if TYPE_CHECKING:
    from zerofleet.launch.audit import RunAudit
    from zerofleet.launch.commands.types import Verbs

_SHOWN_FINDINGS = 20
_PROGRESS_INTERVAL_S = 1.0


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser("audit", help="prove that every sample was fed exactly once, or name what was not")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="where prepared data lies (default: as the run's job)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    folder = RunFolder.open(arguments.run)
    try:
        from zerofleet.launch.audit import audit_run, missing_silos  # needs numpy, which the light verbs do without
    except ImportError as error:
        raise UserError(f"audit needs {error.name}: pip install 'zerofleet[train]'") from error
    silos = silo_runs(folder)
    missing = missing_silos(folder, {silo.name for silo in silos})
    runs = silos if silos or missing else [folder]
    audits = [audit_run(each, arguments.cache, ProgressLine()) for each in runs]
    is_exact = not missing and all(found.audit.is_exact for found in audits)
    if arguments.json:
        each = {found.run.name: found.to_dict() for found in audits}
        facts = {"run": folder.name, "exact": is_exact, "silos": each, "missing": missing}
        sys.stdout.write(json.dumps(audits[0].to_dict() if runs == [folder] else facts) + "\n")
    else:
        told = [report_missing(name, why, folder) for name, why in missing.items()]
        sys.stdout.write("\n".join([*(report(found) for found in audits), *told]))
    return OK if is_exact else RUN_FAILED


class ProgressLine:
    """One line on standard error, where that is a terminal: written over, and gone at the end."""

    def __init__(self) -> None:
        self._began = self._said_at = time.monotonic()
        self._is_shown = sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not self._is_shown or (now - self._said_at < _PROGRESS_INTERVAL_S and done < total):
            return
        self._said_at = now
        per_s = done / max(now - self._began, 1e-9)
        line = f"step {done:,} of {total:,}  {per_s:,.0f} steps/s  ETA {duration((total - done) / per_s)}"
        sys.stderr.write("\r\x1b[K" + (line if done < total else ""))
        sys.stderr.flush()


def report(found: RunAudit) -> str:
    """What a person reads."""
    result = found.audit
    if found.cache is None:
        return f"no step of run {found.run.name} has been recorded yet: there is nothing to prove\n"
    says = "exact" if result.is_exact else "NOT EXACT"
    left_out = [
        f"{named(ranges)} (from attempt {record.attempt} on, which began after step {record.start_step})"
        for record, ranges in result.left_out
    ]
    rows = [
        ("run", f"{found.run.name}: {says}, proven up to step {result.proven_step} of {found.job.train.steps}"),
        ("fed", _fed(found) if result.is_exact else ""),
        *(("quarantine", text) for text in left_out),
        ("repeated", f"{result.num_repeated} steps, done again after a restart" if result.num_repeated else ""),
        ("not recorded", _unrecorded(found)),
        ("data", f"{found.cache.path}"),
        ("prepared", str(found.cache.left_out)),
        (
            "checked",
            f"{result.last_step:,} steps in {found.wall_s:.1f} s ({result.last_step / found.wall_s:,.0f} steps/s)",
        ),
        *(("found", str(finding)) for finding in result.findings[:_SHOWN_FINDINGS]),
    ]
    if len(result.findings) > _SHOWN_FINDINGS:
        rows.append(("found", f"and {len(result.findings) - _SHOWN_FINDINGS} more: --json has all"))
    return "".join(f"{name:<14} {value}\n" for name, value in rows if value)


def report_missing(name: str, why: str, run: RunFolder) -> str:
    """What a person reads of a silo that has no folder."""
    where = run.storage.path(f"{FOLDER}/{name}")
    return f"{'run':<14} {name}: NOT EXACT, nothing of it is proven\n{'found':<14} silo {name} has no folder: {why}; restore {where}\n"


def _fed(found: RunAudit) -> str:
    return f"{found.audit.num_positions:,} positions, each exactly once, with {found.audit.num_tokens:,} tokens"


def _unrecorded(found: RunAudit) -> str:
    if found.unrecorded is None:
        return ""
    first, last = found.unrecorded
    return f"steps {first} to {last} yet, which attempt {found.attempts[-1].attempt} goes on from"
