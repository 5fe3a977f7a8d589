"""`zerofleet report RUN`: writes report.html into the run folder, whatever state the run is in."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from zerofleet.launch.exit_codes import OK
from zerofleet.launch.report.write import write_report
from zerofleet.trainer.run_folder import RunFolder

if TYPE_CHECKING:
    from zerofleet.launch.commands.types import Verbs


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser("report", help="write report.html into the run folder")
    parser.add_argument("run", metavar="RUN")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    sys.stdout.write(f"{write_report(RunFolder.open(arguments.run))}\n")
    return OK
