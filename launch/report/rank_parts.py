"""What the page says of single ranks: their steps, who is slower than the others, and their memory against the plan. Pure."""

from __future__ import annotations

from zerofleet.cluster.goodput.ledger import Ledger, RankTimes
from zerofleet.cluster.policy.stragglers import outliers
from zerofleet.launch.report.markup import facts, mini_bar, section, table, text
from zerofleet.launch.report.timeline import kind_of
from zerofleet.trainer.events import Event

MOST_RANKS = 200
"""Of a table, the slowest."""
MOST_MEMORY_ROWS = 12
_GIB = 2**30
_PARTS = 6
"""Colours of style.py, c1 to c6."""


def ranks_section(ledger: Ledger) -> str:
    """The slowest first."""
    rows: list[tuple[float, str, int, int, RankTimes]] = []
    for record in ledger.history.attempts:
        times = {rank: t for (attempt, rank), t in ledger.rank_times.items() if attempt == record.attempt and t.steps}
        slow = {straggler.rank for straggler in outliers({rank: t.own_s / t.steps for rank, t in times.items()})}
        for rank, t in times.items():
            own = f"{1e3 * t.own_s / t.steps:,.1f}"
            mark = f"<span class=bad>{own} slow</span>" if rank in slow else own
            rows.append((t.own_s / t.steps, mark, record.attempt, rank, t))
    slowest = sorted(rows, key=lambda row: -row[0])[:MOST_RANKS]
    longest_s = max((sum(_parts(t).values()) for *_, t in slowest), default=0.0) or 1.0
    cells = [
        [
            str(attempt),
            str(rank),
            f"{t.steps:,}",
            mark,
            *(f"{1e3 * s:,.1f}" for s in list(_parts(t).values())[1:]),
            _bar(t, longest_s),
        ]
        for _, mark, attempt, rank, t in slowest
    ]
    head = ["attempt", "rank", "steps", "own work", "data wait", "save stall", "ms per step"]
    keys = (("step", "own work"), ("data wait", "data wait"), ("save stall", "save stall"))
    legend = "".join(f'<span class="key {kind_of(label)}">{name}</span>' for label, name in keys)
    more = f"<p><small>The slowest {MOST_RANKS} of {len(rows):,}.</small></p>" if len(rows) > MOST_RANKS else ""
    body = table(head, cells, ("n", "n", "n", "n", "n", "n", "mini-cell"))
    return section("Ranks, the slowest first", f"<p class=legend>{legend}</p>{body}{more}") if body else ""


def _parts(times: RankTimes) -> dict[str, float]:
    """Seconds per step by the label that has its colour."""
    seconds = {"step": times.own_s, "data wait": times.data_s, "save stall": times.stall_s}
    return {label: value / times.steps for label, value in seconds.items()}


def _bar(times: RankTimes, longest_s: float) -> str:
    return mini_bar((kind_of(label), seconds / longest_s) for label, seconds in _parts(times).items())


def memory_section(ledger: Ledger) -> str:
    """What each rank had at its peak, against what was planned. Empty where neither is known."""
    used = ledger.rank_memory
    plans = [event for event in ledger.history.events if event.kind == "plan"]
    if not used and not plans:
        return ""
    name = "device_bytes" if any("device_bytes" in sizes for sizes in used.values()) else "memory_bytes"
    found = {key: sizes[name] for key, sizes in used.items() if name in sizes}
    planned = int(plans[-1].data.get(name, 0)) if plans else 0
    whole = max([*found.values(), planned, 1])
    rows = []
    if planned:
        parts = mini_bar(_planned_parts(plans[-1], planned, whole))
        rows.append(["planned", f"{planned / _GIB:.3g}", "", parts])
    for (attempt, rank), size in sorted(found.items(), key=lambda item: -item[1])[:MOST_MEMORY_ROWS]:
        plan = _plan_of(plans, attempt, name)
        ratio = f"<span{' class=bad' if size > plan else ''}>{size / plan:.0%}</span>" if plan else ""
        bar = mini_bar([("c1", size / whole)], plan / whole if plan else None)
        rows.append([f"attempt {attempt}, rank {rank}", f"{size / _GIB:.3g}", ratio, bar])
    what = "allocated on its GPU" if name == "device_bytes" else "of the host, its own"
    head = ["", "GiB", "of the plan", f"a rank's peak, {what}"]
    body = table(head, rows, ("k", "n", "n", "mini-cell"))
    return section("Memory against the plan", _memory_facts(found, planned), _legend(plans, planned), body)


def _plan_of(plans: list[Event], attempt: int, name: str) -> int:
    """Bytes by the newest plan before the attempt; 0 without one."""
    known = [int(event.data.get(name, 0)) for event in plans if event.attempt <= attempt]
    return known[-1] if known else 0


def _memory_facts(found: dict[tuple[int, int], int], planned: int) -> str:
    largest = max(found.values(), default=0)
    return facts(
        [
            ("planned per rank", f"{planned / _GIB:.3g} GiB" if planned else ""),
            ("largest measured", f"{largest / _GIB:.3g} GiB" if largest else "not recorded"),
            ("of the plan", f"{largest / planned:.0%}" if largest and planned else ""),
        ]
    )


def _shown_parts(plan: Event, planned: int) -> list[tuple[str, int]]:
    """By size, the largest; the last is the rest: imports' pages, buffers, what lies idle."""
    parts = sorted(((str(k), int(v)) for k, v in plan.data["parts"].items() if v), key=lambda part: -part[1])
    shown = parts[: _PARTS - 1]
    return [*shown, ("else", max(0, planned - sum(size for _, size in shown)))]


def _planned_parts(plan: Event, planned: int, whole: int) -> list[tuple[str, float]]:
    return [(f"c{n}", size / whole) for n, (_, size) in enumerate(_shown_parts(plan, planned), start=1)]


def _legend(plans: list[Event], planned: int) -> str:
    if not planned:
        return ""
    keys = "".join(
        f'<span class="key c{n}">{text(name)} {size / _GIB:.2g}</span>'
        for n, (name, size) in enumerate(_shown_parts(plans[-1], planned), start=1)
    )
    return f"<p class=legend><span>Planned, at its peak in {text(plans[-1].data['moment'])}:</span>{keys}</p>"
