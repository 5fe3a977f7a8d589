"""`zerofleet top RUN`: the run on one screen, while it goes on. Reads its folder alone; the run does not notice."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from zerofleet.launch.exit_codes import OK
from zerofleet.launch.follow import poll_interval_s
from zerofleet.launch.top.picture import picture, silo_picture
from zerofleet.launch.top.watched import Watched
from zerofleet.trainer.errors import StorageError
from zerofleet.trainer.run_folder import RunFolder

if TYPE_CHECKING:
    from zerofleet.launch.commands.types import Verbs

INTERVAL_S = 1.0
"""Seconds between two pictures, where storage is not asked less often."""
_PIPE_WIDTH = 120


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser("top", help="a run on one screen, live; q leaves it, and the run goes on")
    parser.add_argument("run", metavar="RUN")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    watched = Watched.open(RunFolder.open(arguments.run))
    if not sys.stdout.isatty():
        Console(width=_PIPE_WIDTH).print(_picture(watched))
        return OK
    console = Console()
    with contextlib.suppress(KeyboardInterrupt):
        watched = _watch(watched, console)
    console.print(_picture(watched))
    return OK


def _watch(watched: Watched, console: Console) -> Watched:
    """Until the run is over or `q` is pressed. Storage that does not answer ends nothing: what was missed is seen later."""
    interval_s, note = max(INTERVAL_S, poll_interval_s(watched.view.run)), "q leaves; the run goes on"
    hint = note
    with _keys(), Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(Group(Text(hint, "dim"), _picture(watched)), refresh=True)  # what is too long is cut off below
            if watched.is_over or _asked_to_leave(interval_s):
                return watched
            try:
                watched, hint = watched.refresh(), note
            except StorageError as error:
                hint = f"storage does not answer: {error}"


def _picture(watched: Watched) -> RenderableType:
    view = watched.view
    whole = picture(view.run.name, view.state, watched.board, view.progress, watched.now)
    if not watched.silos:
        return whole
    rows = [(s.view.run.name, s.view.state, s.view.progress, s.board.accounts(s.now)) for s in watched.silos]
    return Group(whole, silo_picture(rows))


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Keys are read as they are pressed, and not shown; Ctrl-C stays what it is."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _asked_to_leave(timeout_s: float) -> bool:
    """Waits so long for a key."""
    if not sys.stdin.isatty():
        time.sleep(timeout_s)
        return False
    is_pressed = bool(select.select([sys.stdin], [], [], timeout_s)[0])
    return is_pressed and b"q" in os.read(sys.stdin.fileno(), 1024).lower()
