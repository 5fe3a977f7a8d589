"""Single ranks: who is slow, and whose memory is beyond the plan."""

from __future__ import annotations

from tests.support.histories import Story
from zerofleet.cluster.goodput.ledger import Ledger
from zerofleet.launch.report.rank_parts import MOST_RANKS, memory_section, ranks_section

GIB = 2**30


def planned(story: Story, **sizes: int) -> Story:
    story.say(
        "plan",
        attempt=story.attempt + 1,
        parts={"weights": GIB // 2, "moments": GIB // 4},
        moment="step",
        ranks=2,
        **sizes,
    )
    return story


def ledger(story: Story) -> Ledger:
    return Ledger.of(story.history())


def test_each_attempt_is_compared_with_the_plan_before_it():
    story = planned(Story().driver(), memory_bytes=GIB).start().steps(3)
    story.ranks([0.1, 0.1], [0, 0], [0, 0], steps=3, memory_bytes=[GIB, None]).kill()
    story = planned(story.driver(), memory_bytes=4 * GIB).start(from_step=3).steps(2)
    story.ranks([0.1, 0.1], [0, 0], [0, 0], steps=2, memory_bytes=[2 * GIB, 5 * GIB])
    drawn = memory_section(ledger(story))
    rows = [row.split("</td>")[:3] for row in drawn.split("<tr>")[2:]]
    assert [
        [cell.split(">")[-1] if "</span" not in cell else cell.split("<")[-2].split(">")[1] for cell in row]
        for row in rows
    ] == [
        ["planned", "4", ""],
        ["attempt 2, rank 1", "5", "125%"],
        ["attempt 2, rank 0", "2", "50%"],
        ["attempt 1, rank 0", "1", "100%"],
    ]
    assert drawn.count("class=bad") == 1 and drawn.count("class=limit") == 3
    assert "else 3.2" in drawn, "what the parts leave of the plan"


def test_on_gpus_it_is_the_devices_memory():
    story = planned(Story().driver(), memory_bytes=GIB, device_bytes=8 * GIB).start().steps(3)
    story.ranks([0.1, 0.1], [0, 0], [0, 0], steps=3, memory_bytes=[GIB, GIB], device_bytes=[6 * GIB, 4 * GIB])
    drawn = memory_section(ledger(story))
    assert "allocated on its GPU" in drawn and "75%" in drawn and "<b>8 GiB</b>" in drawn


def test_what_is_not_known_is_not_shown():
    assert memory_section(ledger(Story().driver().start().steps(3))) == ""
    only_plan = memory_section(ledger(planned(Story().driver(), memory_bytes=GIB).start()))
    assert "not recorded" in only_plan and "of the plan" not in only_plan.split("<table>")[0]
    story = Story().driver().start().steps(3).ranks([0.1], [0], [0], steps=3, memory_bytes=[GIB])
    assert "<b>1 GiB</b>" in memory_section(ledger(story)) and "planned" not in memory_section(ledger(story))


def test_of_very_many_ranks_the_slowest_are_shown():
    own_s = [0.1 + rank / 1e6 for rank in range(1000)]
    story = Story(world_size=1000).driver().start().steps(3)
    story.ranks([*own_s[:-1], 0.5], [0.05] * 1000, [0.0] * 1000, steps=3)
    drawn = ranks_section(ledger(story))
    assert drawn.count("<tr>") == MOST_RANKS + 1 and f"The slowest {MOST_RANKS} of 1,000." in drawn
    assert drawn.count("slow</span>") == 1 and drawn.index("500.0 slow") < drawn.index("100.9")
    assert 'class="l-step" d="M0 0h90.91v10' in drawn and 'class="l-data-wait" d="M90.91 0h9.091v10' in drawn
