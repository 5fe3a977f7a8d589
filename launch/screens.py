"""What a followed run looks like: rich on a terminal, plain lines elsewhere, or one JSON line per event."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from zerofleet.launch.progress import Progress
from zerofleet.launch.words import duration, prepare_line, step_line
from zerofleet.trainer.events import Event

_STEP_LINE_INTERVAL_S = 5.0
"""Plain output: seconds between two lines about steps."""


class Screen(Protocol):
    """Shows events as they come and the state in between."""

    def event(self, event: Event, progress: Progress) -> None: ...
    def tick(self, progress: Progress) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _Base:
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class JsonScreen(_Base):
    """Every event but signs of life, as it is in the run folder."""

    def event(self, event: Event, progress: Progress) -> None:
        if event.kind != "heartbeat":
            sys.stdout.write(event.to_json() + "\n")
            sys.stdout.flush()

    def tick(self, progress: Progress) -> None:
        """Nothing between events."""


class PlainScreen(_Base):
    """Lines for logs and pipes: everything that happens once, and the steps every few seconds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._last_step_line = 0.0
        self._last_prepare = ("", -1)

    def event(self, event: Event, progress: Progress) -> None:
        line = event_line(event)
        if event.kind == "step":
            line = self._step(progress)
        elif event.kind == "prepare":
            line = self._prepare(progress)
        if line:
            stamp = time.strftime("%H:%M:%S", time.localtime(event.start))
            sys.stdout.write(f"{stamp}  {line}\n")
            sys.stdout.flush()

    def tick(self, progress: Progress) -> None:
        """Nothing between events."""

    def _step(self, progress: Progress) -> str:
        is_due = self._clock() - self._last_step_line >= _STEP_LINE_INTERVAL_S
        if not is_due and progress.step < progress.total_steps:
            return ""
        self._last_step_line = self._clock()
        return step_line(progress)

    def _prepare(self, progress: Progress) -> str:
        """One line per stage and quarter."""
        assert progress.prepare is not None
        place = (progress.prepare[0], int(progress.prepare[1] * 4))
        if place == self._last_prepare:
            return ""
        self._last_prepare = place
        return prepare_line(progress)


class LiveScreen(_Base):
    """A terminal: a block of progress that stays at the bottom, and above it what happened."""

    def __init__(self, run_name: str) -> None:
        self._run_name = run_name
        self._started = time.monotonic()
        self._live = Live(console=Console(), auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def event(self, event: Event, progress: Progress) -> None:
        if line := event_line(event):
            stamp = time.strftime("%H:%M:%S", time.localtime(event.start))
            self._live.console.print(Text(f"{stamp}  {line}"))

    def tick(self, progress: Progress) -> None:
        self._live.update(self._block(progress), refresh=True)

    def _block(self, progress: Progress) -> Group:
        elapsed = duration(time.monotonic() - self._started)
        title = Text.assemble((self._run_name, "bold"), f"  {progress.state}  {elapsed}")
        if progress.attempt > 1:
            title.append(f"  attempt {progress.attempt}")
        if progress.prepare is not None:
            share, total, text = progress.prepare[1], 1.0, prepare_line(progress)
        else:
            share, total, text = float(progress.step), float(progress.total_steps), step_line(progress)
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(total=total, completed=share, width=30), Text(text))
        notes = []
        if progress.last_checkpoint is not None:
            notes.append(f"last checkpoint: step {progress.last_checkpoint}")
        if progress.incidents:
            notes.append(f"incidents: {len(progress.incidents)}")
        return Group(title, bar, *([Text("  ".join(notes), style="dim")] if notes else []))


def event_line(event: Event) -> str:
    """One line for what happens once; empty for what the progress block or the step lines show."""
    data = event.data
    match event.kind:
        case "state":
            # Why a run failed is the last thing said, once.
            return f"{data['to']}" + (
                f": {_first_line(data['why'])}" if data.get("why") and data["to"] != "FAILED" else ""
            )
        case "eval":
            return f"step {event.step}: held-out loss {data['loss']:.4f}"
        case "checkpoint":
            return f"step {event.step}: checkpoint written"
        case "loaded":
            return f"step {event.step}: state loaded"
        case "incident" | "info" | "skipped":
            return f"{'incident: ' if event.kind == 'incident' else ''}{_first_line(data['message'])}"
        case "verdict":
            return _first_line(data["sentence"])
        case "round":
            if not data["is_step"]:
                return f"round {data['round']}: no outer step"
            return f"round {data['round']}: {len(data['tokens'])} silos, {sum(data['tokens'].values()):,} tokens"
        case "profile":
            return f"steps {data['steps'][0]} to {data['steps'][1]} of rank {event.rank} were traced: {data['path']}"
        case "export":
            return f"exported to {data['path']}"
        case _:
            return ""


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def choose_screen(run_name: str, as_json: bool) -> Screen:
    """The screen for this process's standard output."""
    if as_json:
        return JsonScreen()
    return LiveScreen(run_name) if sys.stdout.isatty() else PlainScreen()
