"""A board as rich draws it. Pure: what is known in, something to print out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from zerofleet.cluster.goodput.running import Accounts
from zerofleet.launch.progress import Progress
from zerofleet.launch.report.style import COLOURS
from zerofleet.launch.top.board import Board, RankFigures
from zerofleet.launch.words import duration, prepare_line

MOST_RANKS = 8
"""The slowest; the others in one line."""
MOST_HAPPENINGS = 5
_BAR, _SPARK = 48, 24
_BLOCKS = "▁▂▃▄▅▆▇█"
_STATES = {"FINISHED": "green", "RUNNING": "green", "FAILED": "red", "DEAD": "red", "RECOVERING": "yellow"}
_GIB = 2**30


def picture(name: str, state: str, board: Board, progress: Progress, now: float) -> RenderableType:
    """One run. `now` in Unix seconds."""
    accounts = board.accounts(now)
    parts = [_head(name, state, progress, accounts), _progress(progress), _figures(board, progress)]
    parts += [_time(accounts), _saved(board), _ranks(board, now), _happenings(board)]
    return Group(*(part for part in parts if part is not None))


def silo_picture(silos: Sequence[tuple[str, str, Progress, Accounts]]) -> RenderableType:
    """A line per silo: name, state, how it stands."""
    table = _table("silo", "state", "step", "loss", "tokens/s", "goodput", "outer step")
    for name, state, progress, accounts in silos:
        outer = f"round {progress.outer[0]} {progress.outer[1]}" if progress.outer else ""
        step = f"{progress.step:,}/{progress.total_steps:,}"
        row = (name, state, step, _number(progress.loss), _number(progress.tokens_per_second, ",.0f"))
        table.add_row(*row, f"{accounts.goodput:.0%}", outer)
    return Group(Text(), table)


def sparkline(values: Sequence[float], width: int = _SPARK) -> str:
    """Means of equally many values, from the least to the largest."""
    if len(values) < 2:
        return ""
    size = -(-len(values) // width)
    pieces = [values[start : start + size] for start in range(0, len(values), size)]
    means = [sum(piece) / len(piece) for piece in pieces]
    low, span = min(means), max(means) - min(means) or 1.0
    return "".join(_BLOCKS[min(7, int(8 * (mean - low) / span))] for mean in means)


def _head(name: str, state: str, progress: Progress, accounts: Accounts) -> Text:
    line = Text.assemble(
        (name, "bold"), "  ", (state, _STATES.get(state, "bold")), f"  {duration(sum(accounts.seconds.values()))}"
    )
    line.append(f"  goodput {accounts.goodput:.1%}" if accounts.goodput else "")
    line.append(f"  attempt {progress.attempt}" if progress.attempt > 1 else "")
    return line


def _progress(progress: Progress) -> RenderableType:
    if progress.prepare is not None:
        part, total, text = progress.prepare[1], 1.0, prepare_line(progress)
    else:
        part, total = float(progress.step), float(progress.total_steps)
        text = f"step {progress.step:,} of {progress.total_steps:,}" + (
            f"  ETA {duration(progress.eta_s)}" if progress.eta_s else ""
        )
    grid = Table.grid(padding=(0, 1))
    grid.add_row(ProgressBar(total=total, completed=part, width=_BAR), Text(text))
    return grid


def _figures(board: Board, progress: Progress) -> RenderableType | None:
    if progress.loss is None:
        return None
    heldout = f"  held out {progress.evals[-1][1]:.4f}" if progress.evals else ""
    loss = Text.assemble(("loss  ", "dim"), f"{progress.loss:.4f}{heldout}  ", (sparkline(list(board.losses)), "cyan"))
    speed = [_known(progress.tokens_per_second, ",.0f", " tokens/s"), _known(progress.mfu, ".1%", " MFU")]
    speed += [_known(progress.step_s, ".3g", " s per step"), _known(board.learning_rate, ".3g", " learning rate")]
    return Group(loss, Text.assemble(("speed ", "dim"), "  ".join(filter(None, speed))))


def _time(accounts: Accounts) -> RenderableType | None:
    """A bar of the labels, and their shares, the largest first."""
    total_s = sum(accounts.seconds.values())
    if total_s <= 0:
        return None
    bar, shares, filled = Text.assemble(("time  ", "dim")), Text("      "), 0.0
    for label, seconds in accounts.seconds.items():
        before, filled = round(_BAR * filled / total_s), filled + seconds
        bar.append("█" * (round(_BAR * filled / total_s) - before), COLOURS[label.replace(" ", "-")])
    largest = sorted(accounts.seconds.items(), key=lambda item: -item[1])
    for label, seconds in largest:
        if seconds >= 0.005 * total_s:
            shares.append("■ ", COLOURS[label.replace(" ", "-")])
            shares.append(f"{label} {seconds / total_s:.0%}  ")
    return Group(Text(), bar, shares)


def _saved(board: Board) -> RenderableType | None:
    tiers = board.tiers
    steps = [("durable", tiers.durable), ("in memory", tiers.memory), ("at the buddy", tiers.buddy)]
    known = [f"{name} step {step:,}" for name, step in steps if step is not None]
    line = Text.assemble(("saved ", "dim"), "  ".join(known))
    if tiers.storage_down_since is not None:
        line.append("  storage is down", "red")
    return Group(Text(), line) if known or tiers.storage_down_since is not None else None


def _ranks(board: Board, now: float) -> RenderableType | None:
    ranks = board.ranks
    if not ranks:
        return None
    has_memory = any(figures.memory_bytes for figures in ranks)
    head = ["rank", "own work", "data wait", "save stall", *(("memory", "of plan") if has_memory else ())]
    table = _table(*head)
    for figures in ranks[:MOST_RANKS]:
        cells = list(_cells(figures, board.planned_bytes))[: len(head)]
        table.add_row(*cells, style="red" if figures.is_slow else "")
    which = f"the slowest {MOST_RANKS} of {len(ranks):,}, " if len(ranks) > MOST_RANKS else ""
    age = duration(max(0.0, now - board.sums_at))
    return Group(Text(), table, Text(f"{which}ms per step and GiB, as of {age} ago", "dim"))


def _cells(figures: RankFigures, planned: int) -> Iterator[str]:
    yield f"{figures.rank}{' slow' if figures.is_slow else ''}"
    for seconds in (figures.own_s, figures.data_s, figures.stall_s):
        yield f"{1e3 * seconds:,.1f}"
    size = figures.memory_bytes
    yield f"{size / _GIB:.3g}" if size else ""
    yield f"{size / planned:.0%}" if size and planned else ""


def _happenings(board: Board) -> RenderableType | None:
    if not board.happenings:
        return None
    grid = Table.grid(padding=(0, 2))
    for happening in list(board.happenings)[-MOST_HAPPENINGS:]:
        stamp = time.strftime("%H:%M:%S", time.localtime(happening.at))
        grid.add_row(Text(stamp, "dim"), Text(happening.text, "yellow" if happening.is_bad else ""))
    return Group(Text(), grid)


def _table(*head: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for number, name in enumerate(head):
        table.add_column(name, justify="left" if number == 0 else "right")
    return table


def _known(value: float | None, form: str, unit: str) -> str:
    return "" if value is None else f"{value:{form}}{unit}"


def _number(value: float | None, form: str = ".4f") -> str:
    return _known(value, form, "")
