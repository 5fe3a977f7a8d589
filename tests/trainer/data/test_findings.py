"""Findings in words, and how those of neighbouring steps become one."""

from __future__ import annotations

import json
from dataclasses import replace

from zerofleet.trainer.data.findings import Finding, joined, steps_named

DATA = Finding("data", 8, 8, 1, "rank 1 was fed others", [[56, 64]], (1,))


def at(step: int, **changes) -> Finding:
    return replace(DATA, first_step=step, last_step=step, ranges=[[8 * step - 8, 8 * step]], **changes)


def test_the_same_at_steps_that_follow_each_other_is_one():
    (one,) = joined([at(9), at(8), at(10)])
    assert (one.first_step, one.last_step, one.ranges) == (8, 10, [[56, 80]])
    assert str(one) == "steps 8 to 10 (attempt 1): wrong data: rank 1 was fed others"


def test_what_differs_by_step_says_that_it_goes_on():
    texts = [at(step, kind="counts", text=f"{step} tokens") for step in (8, 9, 10)]
    (one,) = joined(texts)
    assert one.text == "8 tokens; and so on"


def test_other_steps_ranks_attempts_and_kinds_stay_apart():
    apart = [at(1), at(3), at(4, ranks=(2,)), at(5, attempt=2), at(6, kind="counts")]
    assert joined(apart) == apart
    gaps = [at(1, kind="gap"), at(2, kind="gap")]
    assert joined(gaps) == gaps, "each is a stretch of its own"


def test_two_ranks_that_are_wrong_side_by_side():
    found = joined([at(step, ranks=(rank,)) for step in (1, 2, 3) for rank in (0, 1)])
    assert [(finding.first_step, finding.last_step, finding.ranks) for finding in found] == [(1, 3, (0,)), (1, 3, (1,))]


def test_a_finding_is_json_with_its_sentence():
    facts = json.loads(json.dumps(DATA.to_dict()))
    assert facts["ranks"] == [1] and facts["kind"] == "data"
    assert facts["message"] == "step 8 (attempt 1): wrong data: rank 1 was fed others"


def test_steps_in_words():
    assert steps_named([[8, 9]]) == "step 8"
    assert steps_named([[8, 11], [20, 21]]) == "steps 8 to 10, 20"
