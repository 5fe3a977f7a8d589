"""`zerofleet explain RUN`: what happened, what it cost, and the setting that would have saved most."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from zerofleet.launch.exit_codes import OK
from zerofleet.launch.explanation import Explanation
from zerofleet.launch.run_view import RunView
from zerofleet.trainer.run_folder import RunFolder

if TYPE_CHECKING:
    from zerofleet.launch.commands.types import Verbs


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser("explain", help="why a run took as long as it did")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    explanation = Explanation.of(RunView.of(RunFolder.open(arguments.run)))
    sys.stdout.write(f"{json.dumps(explanation.to_dict())}\n" if arguments.json else explanation.text())
    return OK
