"""`zerofleet export RUN`: a Hugging Face model folder from a checkpoint."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from zerofleet.launch.chatter import chatter_apart
from zerofleet.launch.drivers import effective_job
from zerofleet.launch.exit_codes import OK
from zerofleet.trainer.config import Precision
from zerofleet.trainer.errors import NotFoundError, UserError
from zerofleet.trainer.run_folder import CheckpointId, RunFolder

if TYPE_CHECKING:
    from zerofleet.launch.commands.types import Verbs


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser("export", help="write a Hugging Face model folder")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--step", type=int, metavar="N", help="of this step (default: the newest that verifies)")
    parser.add_argument(
        "--dtype", choices=get_args(Precision), help="of the weights (default: checkpoint.export_dtype)"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="target (default: export/ in the run folder)")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    folder = RunFolder.open(arguments.run)
    checkpoint = None if arguments.step is None else at_step(folder, arguments.step)
    dtype = arguments.dtype or effective_job(folder).checkpoint.export_dtype
    said: list[str] = []
    with chatter_apart():
        try:
            from zerofleet.trainer.checkpoint.export import export
        except ImportError as error:
            raise UserError(f"export needs {error.name}: pip install 'zerofleet[train]'") from error
        path = export(folder, checkpoint, arguments.output, dtype, said.append)
    sys.stderr.write("".join(f"warning: {sentence}\n" for sentence in said))
    sys.stdout.write(f"{path}\n")
    return OK


def at_step(folder: RunFolder, step: int) -> CheckpointId:
    """The newest attempt's checkpoint of a step. Raises NotFoundError."""
    found = folder.checkpoints()
    matching = [checkpoint for checkpoint in found if checkpoint.step == step]
    if not matching:
        there = ", ".join(str(known) for known in sorted({checkpoint.step for checkpoint in found})) or "none"
        raise NotFoundError(f"run {folder.name!r} has no checkpoint of step {step}; it has: {there}")
    return matching[-1]
