"""The command line: `zerofleet VERB ...`. Verbs live in launch/commands, one module each."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from zerofleet.launch.commands import (
    audit,
    bench,
    chaos,
    doctor,
    eval,
    explain,
    export,
    import_model,
    k8s,
    list_runs,
    logs,
    partition,
    plan,
    report,
    resume,
    simulate,
    stacks,
    status,
    stop,
    submit,
    top,
    validate,
)
from zerofleet.launch.exit_codes import INTERRUPTED
from zerofleet.trainer.errors import ZerofleetError

VERBS = (
    *(submit, validate, status, list_runs, logs, stop, resume, export, import_model, partition),
    *(plan, simulate, bench, eval, audit, explain, report, top, stacks, chaos, doctor, k8s),
)

EPILOG = """\
RUN is a name under $ZEROFLEET_STORAGE (default ./runs), a path or a URL.
exit codes: 0 ok, 1 the run failed, 2 your mistake, 3 timeout, 4 not found, 130 interrupted (detached: the run goes on)
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zerofleet",
        description="Train Transformers with DeepSpeed ZeRO on Ray.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in VERBS:
        verb.add_parser(verbs)
    return parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """argparse takes positional arguments in one piece only; overrides may also follow an option."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    late = [text for text in rest if "=" in text and not text.startswith("-")] if "overrides" in arguments else []
    if unknown := [text for text in rest if text not in late]:
        parser.error(f"{arguments.verb} does not take {' '.join(unknown)}; see: zerofleet {arguments.verb} --help")
    if late:
        arguments.overrides = [*arguments.overrides, *late]
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns its exit code. Whatever zerofleet raises on purpose is shown without a traceback."""
    arguments = _parse(argv)
    try:
        return int(arguments.handler(arguments))
    except ZerofleetError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has gone; nothing more may be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
