"""`zerofleet partition RECIPE FOLDER --into N`: one corpus as a part for each silo, for experiments."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from zerofleet.launch.config import load_job
from zerofleet.launch.exit_codes import OK
from zerofleet.trainer.errors import UserError

if TYPE_CHECKING:
    from zerofleet.launch.commands.types import Verbs
    from zerofleet.trainer.silos.deal import Part

_MOST_LABELS = 3


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser("partition", help="deal a recipe's corpus out to silos, for experiments")
    parser.add_argument("recipe", help="YAML file, of which the section `data` counts")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="new folder for part-0.jsonl, part-1.jsonl, ...")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change, such as data.files")
    parser.add_argument("--into", type=int, required=True, metavar="N", help="number of parts")
    parser.add_argument(
        "--by",
        default="IidPartitioner",
        metavar="NAME",
        help="as flwr-datasets calls it (docs/silos.md); IidPartitioner",
    )
    parser.add_argument(
        "--option", action="append", default=[], metavar="key=value", help="of the partitioner, such as alpha=0.3"
    )
    parser.add_argument(
        "--label",
        choices=("source", "folder", "file"),
        default="folder",
        help="what a document's label is: its source in data.sources, the folder of its file (default), or the file",
    )
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    from zerofleet.trainer.silos.deal import Dealing, deal  # needs numpy, which the light verbs do without

    job = load_job(arguments.recipe, arguments.overrides)
    dealing = Dealing(arguments.by, arguments.into, arguments.label, job.run.seed, _options(arguments.option))
    sys.stdout.write(report(deal(job.data, dealing, arguments.folder.absolute())))
    return OK


def report(parts: list[Part]) -> str:
    """What each part holds, and the section of a recipe that names them."""
    lines = []
    for part in parts:
        shown = [f"{count:,} of {label}" for label, count in list(part.labels.items())[:_MOST_LABELS]]
        rest = f", and of {len(part.labels) - len(shown)} more" if len(part.labels) > len(shown) else ""
        lines.append(f"# {part.path.name}: {part.num_documents:,} documents, {'; '.join(shown)}{rest}")
    members = {part.path.stem: {"files": [str(part.path)]} for part in parts}
    return "\n".join(lines) + "\n" + yaml.safe_dump({"silos": {"members": members}}, sort_keys=False)


def _options(given: list[str]) -> dict[str, Any]:
    options = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise UserError(f"--option {text} is not of the form key=value")
        options[name] = yaml.safe_load(value)
    return options
