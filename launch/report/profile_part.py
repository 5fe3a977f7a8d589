"""What the page says of steps that were traced: the ops that took most, and the memory of tensors meanwhile. Pure."""

from __future__ import annotations

from zerofleet.cluster.goodput.ledger import Ledger
from zerofleet.launch.report.charts import Line, chart, number
from zerofleet.launch.report.markup import mini_bar, section, table, text
from zerofleet.launch.report.series import downsample
from zerofleet.trainer.events import Event

MOST_TRACES = 8
"""The newest."""
MOST_OPS = 10
_MIB = 2**20
_MEMORY = {
    "cpu": "Memory of tensors, beyond what there was when the trace began",
    "cuda": "Memory of tensors on the GPU",
}


def profile_section(ledger: Ledger) -> str:
    """Empty without `train.profile`."""
    traces = [event for event in ledger.history.events if event.kind == "profile"][-MOST_TRACES:]
    return section("Profile", *map(_trace, traces))


def _trace(event: Event) -> str:
    first, last = event.data["steps"]
    whole_s = sum(op["self_s"] for op in event.data["ops"]) or 1.0
    rows = [
        [
            text(op["name"]),
            f"{op['calls']:,}",
            f"{1e3 * op['self_s']:,.1f}",
            mini_bar([("c1", op["self_s"] / whole_s)]),
        ]
        for op in event.data["ops"][:MOST_OPS]
    ]
    charts = "".join(
        chart(
            _MEMORY.get(kind, f"Memory of tensors ({kind})"),
            [Line("memory", downsample([(1e3 * at_s, size / _MIB) for at_s, size in points]))],
            unit="MiB over ms",
            shown=number,
        )
        for kind, points in event.data["memory"].items()
    )
    where = f"<p>Rank {event.rank}, steps {first} to {last} of attempt {event.attempt}: <code>{text(event.data['path'])}</code> for ui.perfetto.dev</p>"
    head = ["op", "calls", "ms by itself", f"of the {len(event.data['ops'])} heaviest"]
    return f"{where}<div class=charts>{charts}</div>{table(head, rows, ('k', 'n', 'n', 'mini-cell'))}"
