"""`zerofleet stacks RUN`: what every rank is doing at this moment, without its help, and without holding it up."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from zerofleet.launch.exit_codes import OK, RUN_FAILED, TIMEOUT
from zerofleet.launch.follow import poll_interval_s
from zerofleet.launch.run_view import RunView
from zerofleet.launch.words import command, run_argument
from zerofleet.trainer.errors import NotFoundError, UserError
from zerofleet.trainer.run_folder import RunFolder

if TYPE_CHECKING:
    from zerofleet.launch.commands.types import Verbs

TIMEOUT_S = 30.0
_STATES = {
    "R": "running",
    "S": "waiting",
    "D": "waiting for a disk or a device",
    "T": "stopped by a signal",
    "t": "stopped by a debugger",
}
"""The kernel's letters for a process (proc(5)); others are shown as they are."""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser("stacks", help="what every rank is doing now: its Python stacks")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--rank", type=int, metavar="N", help="of this rank only")
    parser.add_argument(
        "--timeout", type=float, default=TIMEOUT_S, metavar="SECONDS", help="how long to wait (default: %(default)g)"
    )
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    view = RunView.of(RunFolder.open(arguments.run))
    if view.is_torchrun:
        raise UserError(f"run {view.run.name} is trained by torchrun, which cannot be asked")
    if not view.is_driven:
        sys.stderr.write(
            f"error: run {view.run.name} has no ranks: {view.state}. What it last did: {command('logs', run_argument(view.run))}\n"
        )
        return RUN_FAILED
    asked_at, deadline = time.time(), time.monotonic() + arguments.timeout
    view.run.request("stacks")
    while time.monotonic() < deadline and not view.progress.is_final:
        for event in view.tail.poll():
            if event.kind == "stacks" and event.start >= asked_at:
                sys.stdout.write(_shown(event.data["ranks"], arguments.rank))
                return OK
            view.progress.apply(event)
        time.sleep(poll_interval_s(view.run))
    if view.progress.is_final:
        sys.stderr.write(f"error: run {view.run.name} is {view.state} meanwhile: there are no ranks any more\n")
        return RUN_FAILED
    sys.stderr.write(
        f"error: the driver of run {view.run.name} has not answered within {arguments.timeout:g} s. See {command('logs', run_argument(view.run))}\n"
    )
    return TIMEOUT


def _shown(ranks: dict[str, str], only: int | None) -> str:
    """Raises NotFoundError for a rank that there is not."""
    texts = {int(rank): text for rank, text in ranks.items()}
    if only is not None and only not in texts:
        there = f"there are ranks {min(texts)} to {max(texts)}" if texts else "no rank is up at this moment"
        raise NotFoundError(f"there is no rank {only}: {there}")
    if not texts:
        return "no rank is up at this moment\n"
    chosen = sorted(texts) if only is None else [only]
    return "\n".join(_of_rank(rank, *texts[rank].split(" ", 1)) for rank in chosen)


def _of_rank(rank: int, state: str, text: str) -> str:
    return f"==> rank {rank}, {_STATES.get(state, state or 'gone')} <==\n{text.rstrip()}\n"
