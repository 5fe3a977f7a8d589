"""`zerofleet list`: the runs of a storage folder."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from zerofleet.launch.backends.options import add_backend
from zerofleet.launch.exit_codes import OK
from zerofleet.launch.run_view import RunView
from zerofleet.trainer.errors import ZerofleetError
from zerofleet.trainer.run_folder import RunFolder, default_storage
from zerofleet.trainer.storage import Storage

if TYPE_CHECKING:
    from zerofleet.launch.commands.types import Verbs

_COLUMNS = "{:<32} {:<10} {:>13} {:>9} {:>9}\n"


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser("list", help="the runs in a storage folder")
    parser.add_argument("storage", nargs="?", help="folder or URL (default: $ZEROFLEET_STORAGE, else ./runs)")
    parser.add_argument("--json", action="store_true", help="one JSON line per run")
    add_backend(parser, namespace=True)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.backend == "kuberay":
        from zerofleet.launch.backends import kuberay_verbs

        return kuberay_verbs.list_runs(arguments)
    url = arguments.storage or default_storage()
    folders = [RunFolder(url, name) for name in Storage(url).list()]
    views = [view for folder in folders if (view := _view(folder)) is not None]
    if not arguments.json:
        if not views:
            sys.stdout.write(f"no runs in {Storage(url).path()}\n")
            return OK
        sys.stdout.write(_COLUMNS.format("RUN", "STATE", "STEP", "LOSS", "HELD-OUT"))
    for view in views:
        sys.stdout.write(json.dumps(_facts(view)) + "\n" if arguments.json else _row(view))
    return OK


def _view(folder: RunFolder) -> RunView | None:
    """None for what is no run; one that cannot be read is said and left out."""
    try:
        return RunView.of(folder) if folder.storage.exists("job.yaml") else None
    except Exception as error:  # noqa: BLE001 - whatever is damaged in one run, the others are listed
        reason = str(error) if isinstance(error, ZerofleetError) else f"{type(error).__name__}: {error}"
        sys.stderr.write(f"warning: {folder.name} cannot be read: {reason}\n")
        return None


def _facts(view: RunView) -> dict[str, object]:
    return {
        "run": view.run.name,
        "state": view.state,
        "step": view.progress.step,
        "steps": view.progress.total_steps,
        "loss": view.progress.loss,
        "heldout_loss": view.progress.evals[-1][1] if view.progress.evals else None,
    }


def _row(view: RunView) -> str:
    facts = _facts(view)
    losses = ["-" if facts[key] is None else f"{facts[key]:.4f}" for key in ("loss", "heldout_loss")]
    return _COLUMNS.format(view.run.name, view.state, f"{facts['step']}/{facts['steps']}", *losses)
