"""`zerofleet status RUN`: how a run stands, read from its folder alone."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from zerofleet.cluster.goodput.ledger import Ledger
from zerofleet.launch.accounts import history_of
from zerofleet.launch.backends.options import add_backend
from zerofleet.launch.exit_codes import OK
from zerofleet.launch.run_view import RunView
from zerofleet.launch.silos.jobs import silo_runs
from zerofleet.launch.summary import heldout_line, summarise
from zerofleet.launch.words import command, duration, prepare_line, run_argument, step_line
from zerofleet.trainer.run_folder import RunFolder

if TYPE_CHECKING:
    from zerofleet.launch.commands.types import Verbs

_SHOWN_INCIDENTS = 3


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser("status", help="how a run stands")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_backend(parser, namespace=True)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.backend == "kuberay":
        from zerofleet.launch.backends import kuberay_verbs

        return kuberay_verbs.status(arguments)
    view = RunView.of(RunFolder.open(arguments.run))
    if arguments.json:
        sys.stdout.write(json.dumps(_facts(view)) + "\n")
        return OK
    progress = view.progress
    reason = view.why_dead or (progress.why if view.state == progress.state else "")
    why = f": {reason}" if reason else ""
    rows = [
        ("run", view.run.name),
        ("state", f"{view.state}{why}"),
        ("driver", view.describe_driver()),
        ("attempt", str(view.attempt) if view.attempt else ""),
        ("preparing", prepare_line(progress).removeprefix("preparing: ")),
        ("progress", step_line(progress) if progress.step else ""),
        ("goodput", _goodput_line(Ledger.of(history_of(view)))),
        ("held-out loss", heldout_line(progress)),
        ("checkpoints", ", ".join(f"step {checkpoint.step}" for checkpoint in view.run.checkpoints())),
        *((f"silo {silo.run.name}", _silo_line(silo)) for silo in _silos(view)),
        *(("incident", text) for text in progress.incidents[-_SHOWN_INCIDENTS:]),
        ("export", progress.export_path or ""),
        ("folder", view.run.storage.path()),
        ("next", _next(view)),
    ]
    sys.stdout.write("".join(f"{name:<14} {value}\n" for name, value in rows if value))
    return OK


def _goodput_line(ledger: Ledger) -> str:
    """Empty before the first step."""
    share = ledger.goodput()
    return f"{share:.0%} of {duration(ledger.wall_s)}" if share else ""


def _next(view: RunView) -> str:
    """What to do about a run that goes on no more by itself; empty for the others."""
    if view.state not in ("DEAD", "FAILED", "STOPPED"):
        return ""
    if view.failed_by_mistake:
        return f"mend the recipe and submit it again: {command('submit', 'RECIPE')}"
    return command("resume", run_argument(view.run))


def _facts(view: RunView) -> dict[str, object]:
    return {
        **summarise(view.run, view.progress),
        "state": view.state,
        "attempt": view.attempt,
        "driver_alive": view.is_driven,
        **({"job": view.submitted.record.job, "address": view.submitted.record.address} if view.submitted else {}),
        "tokens_per_second": view.progress.tokens_per_second,
        "eta_s": view.progress.eta_s,
        "goodput": Ledger.of(history_of(view)).goodput(),
        "prepare": view.progress.prepare,
        **({"privacy": view.progress.privacy} if view.progress.privacy else {}),
        **({"silos": {silo.run.name: _facts(silo) for silo in silos}} if (silos := _silos(view)) else {}),
    }


def _silos(view: RunView) -> list[RunView]:
    """The runs that this one is made of; most are made of none."""
    return [RunView.of(run) for run in silo_runs(view.run)]


def _silo_line(view: RunView) -> str:
    """State, progress and what became of its newest outer step."""
    outer = view.progress.outer
    round_ = f"round {outer[0]} {outer[1]}" if outer else ""
    spent = view.progress.privacy
    epsilon = f"epsilon {spent['epsilon']:.3g} at delta {spent['delta']:g}" if spent else ""
    return "  ".join(part for part in (view.state, step_line(view.progress), round_, epsilon) if part)
