"""Fault plans as files."""

from __future__ import annotations

import pytest

from zerofleet.cluster.faults import KINDS
from zerofleet.launch.chaos.plan import DEFAULT, ends_badly, load_plan, plan_of
from zerofleet.trainer.errors import NotFoundError, UserError


def test_shares_are_steps_of_the_run():
    plan = plan_of([{"kind": "kill", "rank": 1, "step": share} for share in ("25%", "0.1 %", "100%", 7)], 30, 2, "p")
    assert [fault.step for fault in plan] == [8, 1, 30, 7]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[{kind: kill", "cannot be read"),
        ("[]", "holds no fault"),
        ("kill", "must be a list of faults, not str"),
        ("[{kind: kill, rank: 1, step: 31}]", "never strikes, since the run has 30 steps"),
        ("[{kind: kill, rank: 2, step: 3}]", "never strikes: it waits for rank 2, and the run has ranks 0 to 1"),
        ("[{kind: kill_head, step: 3, attempt: null}]", "would strike in every attempt"),
        ("[{kind: earthquake, step: 3}]", "'earthquake' is none of"),
    ],
)
def test_what_is_no_plan_is_refused(tmp_path, text, words):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        load_plan(path, 30, 2)


def test_a_plan_that_is_not_there(tmp_path):
    with pytest.raises(NotFoundError, match="does not exist"):
        load_plan(tmp_path / "plan.yaml", 30, 2)


def test_the_default_plan_suits_short_and_long_runs():
    for steps in (10, 100_000):
        plan = load_plan(DEFAULT, steps, 2)
        assert {fault.kind for fault in plan} <= set(KINDS) and not ends_badly(plan)
        assert sorted(fault.step for fault in plan) == [fault.step for fault in plan]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"attempt": 1}, False),
        ({"attempt": "any"}, False),
        ({"attempt": None}, True),
        ({"attempt": None, "position": 17}, False),
    ],
)
def test_only_what_is_nan_whatever_it_is_fed_ends_badly(entry, expected):
    assert ends_badly(plan_of([{"kind": "nan", "rank": 0, "step": 3, **entry}], 30, 2, "p")) is expected
