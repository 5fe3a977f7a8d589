"""Where the time went, attempt by attempt, with what happened on it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from zerofleet.cluster.goodput.ledger import Ledger
from zerofleet.cluster.goodput.timeline import LABELS, Span
from zerofleet.launch.explanation import Happening
from zerofleet.launch.report.charts import axis
from zerofleet.launch.report.markup import text
from zerofleet.launch.report.ticks import of_duration
from zerofleet.launch.words import duration

SLOTS = 800
"""Of the wall time: what is shorter than one shares it with its neighbours, in proportion."""
ROW = 100
MOST_ROWS = 40
"""With more attempts all of them lie in one row."""
MOST_MARKS = 200
MOST_NUMBERED = 30
"""With more marks there is no room for their numbers."""

Slots = dict[int, dict[str, float]]


def timeline(ledger: Ledger, happenings: Sequence[Happening]) -> str:
    """A row per attempt over one common time axis; a bar's colours share its height as labels share that time."""
    if not ledger.spans or ledger.history.ended_at <= ledger.history.began_at:
        return ""
    began_at, total_s = ledger.history.began_at, ledger.history.ended_at - ledger.history.began_at
    is_one_row = len(ledger.attempts) > MOST_ROWS
    rows: dict[int, list[Span]] = defaultdict(list)
    for span in ledger.spans:
        rows[0 if is_one_row else span.attempt].append(span)
    marks: dict[int, list[tuple[str, Happening]]] = defaultdict(list)
    for number, happening in marked(happenings).items():
        name = str(number) if number <= MOST_NUMBERED else ""
        marks[0 if is_one_row else happening.attempt].append((name, happening))
    drawn = "".join(
        _row(
            "all attempts" if is_one_row else f"attempt {attempt}",
            slots_of(spans, began_at, total_s),
            marks[attempt],
            began_at,
            total_s,
        )
        for attempt, spans in sorted(rows.items())
    )
    known = [label for label in LABELS if ledger.labels[label] > 0]
    legend = "".join(f'<span class="key {kind_of(label)}">{text(label)}</span>' for label in known)
    if any(marks.values()):
        legend += '<span class="key dot">verdict or incident, numbered as in What happened</span>'
    times = axis([(seconds / total_s, duration(seconds)) for seconds in of_duration(total_s)])
    return f'<p class=legend>{legend}</p>{drawn}<div class="x rowed">{times}</div>'


def marked(happenings: Sequence[Happening]) -> dict[int, Happening]:
    """Verdicts and incidents by their number, the newest of them."""
    notable = [happening for happening in happenings if happening.kind in ("verdict", "incident")]
    return dict(enumerate(notable[-MOST_MARKS:], start=1))


def slots_of(spans: Sequence[Span], began_at: float, total_s: float) -> Slots:
    """Seconds by label in each slot of the time axis that has some."""
    slot_s = total_s / SLOTS
    found: Slots = defaultdict(lambda: defaultdict(float))
    for span in spans:
        start, end = (span.start - began_at) / slot_s, (span.end - began_at) / slot_s
        for number in range(int(start), min(SLOTS, int(end) + 1)):
            if (inside := min(end, number + 1) - max(start, number)) > 0:
                found[number][span.label] += inside * slot_s
    return found


def _row(name: str, slots: Slots, marks: Sequence[tuple[str, Happening]], began_at: float, total_s: float) -> str:
    paths: dict[str, list[str]] = defaultdict(list)
    runs = _runs(slots)
    for first, count, shares in runs:
        top = 0.0
        for label, share in shares:
            paths[label].append(f"M{first} {top * ROW:.3g}h{count}v{share * ROW:.3g}h-{count}z")
            top += share
    bars = "".join(f'<path class="{kind_of(label)}" d="{"".join(pieces)}"/>' for label, pieces in paths.items())
    dots = "".join(_mark(number, mark, 100 * (mark.at - began_at) / total_s) for number, mark in marks)
    seconds = sum(sum(labels.values()) for labels in slots.values())
    return (
        f"<div class=row><span>{text(name)}<br><small>{duration(seconds)}</small></span>"
        f'<div class=bar><svg viewBox="0 0 {SLOTS} {ROW}" preserveAspectRatio="none" role="img" aria-label="{text(name)}">{bars}</svg>{dots}</div></div>\n'
    )


def _runs(slots: Slots) -> list[tuple[int, int, list[tuple[str, float]]]]:
    """(first slot, number of slots, share of each label): neighbours that look the same are one."""
    found: list[tuple[int, int, list[tuple[str, float]]]] = []
    for number, labels in sorted(slots.items()):
        total_s = sum(labels.values())
        shares: list[tuple[str, float]] = [
            (label, round(labels[label] / total_s, 2)) for label in LABELS if labels.get(label, 0.0) > 0.005 * total_s
        ]
        if found and found[-1][0] + found[-1][1] == number and found[-1][2] == shares:
            found[-1] = (found[-1][0], found[-1][1] + 1, shares)
        else:
            found.append((number, 1, shares))
    return found


def _mark(number: str, mark: Happening, percent: float) -> str:
    place = min(100.0, max(0.0, percent))
    return f'<i style="left:{place:.2f}%" title="{text(mark.text[:300])}">{number}</i>'


def kind_of(label: str) -> str:
    """Its CSS class."""
    return f"l-{label.replace(' ', '-')}"
