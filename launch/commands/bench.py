"""`zerofleet bench [NAME | compare A B]`: measures, and compares what was measured.

Nothing of launch imports benchmarks: they are reached by name, as a plugin would be, and all that follows `bench` is theirs to read.
"""

from __future__ import annotations

import argparse
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zerofleet.launch.commands.types import Verbs

_MODULE = "zerofleet.benchmarks.command"


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "bench",
        help="measure throughput, overhead, recovery, ...; compare two results",
        add_help=False,
        prefix_chars="\0",
    )
    parser.add_argument("arguments", nargs="*")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    return int(importlib.import_module(_MODULE).main(arguments.arguments))
