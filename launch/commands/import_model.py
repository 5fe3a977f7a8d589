"""`zerofleet import SOURCE FOLDER`: a checkpoint of DeepSpeed or of the Hugging Face Trainer as a model folder that a run can start from."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from zerofleet.launch.exit_codes import OK

if TYPE_CHECKING:
    from zerofleet.launch.commands.types import Verbs


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser("import", help="weights of a DeepSpeed or HF Trainer checkpoint, for model.pretrained")
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="folder that DeepSpeed saved into, a global_step* of it, or a Trainer's checkpoint-N",
    )
    parser.add_argument("folder", metavar="FOLDER", help="new folder for the model, in fp32")
    parser.add_argument(
        "--config",
        metavar="FOLDER",
        help="where the model's config.json and tokenizer are (default: in SOURCE, or beside it)",
    )
    parser.set_defaults(handler=run)


def say(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")


def run(arguments: argparse.Namespace) -> int:
    from zerofleet.trainer.foreign import find, import_model  # needs torch and transformers

    target = Path(arguments.folder)
    source = find(Path(arguments.source), Path(arguments.config) if arguments.config else None)
    import_model(source, target, say)
    sys.stdout.write(f"{target}\n")
    sys.stderr.write(
        f"start from it with model.pretrained={target}; optimizer, step and place in the data begin anew\n"
    )
    return OK
