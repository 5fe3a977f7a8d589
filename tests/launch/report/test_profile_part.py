"""What the page says of traced steps."""

from __future__ import annotations

from tests.support.histories import Story
from zerofleet.cluster.goodput.ledger import Ledger
from zerofleet.launch.report.profile_part import MOST_OPS, profile_section

OPS = [{"name": f"aten::op<{n}>", "calls": n, "self_s": 1.0 / (n + 1)} for n in range(20)]


def story(**data) -> Story:
    found = Story().driver().start().steps(3)
    memory = {"cpu": [[0.0, 0], [0.5, 3 * 2**20], [1.0, 2**20]]}
    found.say("profile", 1, **{"steps": [2, 3], "path": "profile/a.gz", "ops": OPS, "memory": memory, **data})
    return found


def test_the_heaviest_ops_and_the_memory_are_drawn():
    drawn = profile_section(Ledger.of(story().history()))
    assert "Rank 1, steps 2 to 3 of attempt 1: <code>profile/a.gz</code>" in drawn
    assert drawn.count("<tr>") == 1 + MOST_OPS and "aten::op&lt;0&gt;" in drawn and "1,000.0" in drawn
    assert "Memory of tensors, beyond what there was when the trace began" in drawn and drawn.count("<svg viewBox") == 1


def test_without_traces_there_is_no_section():
    assert profile_section(Ledger.of(Story().driver().start().steps(3).history())) == ""


def test_a_trace_without_memory_has_its_ops():
    drawn = profile_section(Ledger.of(story(memory={}).history()))
    assert "<figure>" not in drawn and "aten::op" in drawn
