"""Faults as data."""

from __future__ import annotations

import json

import pytest

from zerofleet.cluster.faults import Fault, FaultInjector, InjectedFault, format_faults, parse_faults
from zerofleet.trainer.errors import UserError


def test_a_round_trip():
    faults = (Fault("kill", 1, 30), Fault("nan", 0, 5, "step", None), Fault("raise", 0, 0, "init", 2))
    assert parse_faults(format_faults(faults)) == faults


def test_nothing_is_no_faults():
    assert parse_faults("") == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "not JSON"),
        ("{}", "list"),
        ('[{"kind": "kill"}]', "give kind, rank and step"),
        ('[{"kind": "kill", "rank": 1, "step": 3, "when": 2}]', "give kind, rank and step"),
        ('[{"kind": "explode", "rank": 1, "step": 3}]', "explode"),
        ('[{"kind": "kill", "rank": 1, "step": 3, "point": "lunch"}]', "lunch"),
    ],
)
def test_what_is_no_fault_is_refused(text, words):
    with pytest.raises(UserError, match=words):
        parse_faults(text)


def test_a_fault_strikes_once_at_its_rank_step_point_and_attempt():
    faults = parse_faults(json.dumps([{"kind": "nan", "rank": 1, "step": 3}]))
    assert FaultInjector(faults, rank=0, attempt=1)("step", 3) is None
    assert FaultInjector(faults, rank=1, attempt=2)("step", 3) is None
    injector = FaultInjector(faults, rank=1, attempt=1)
    assert [injector(point, step) for point, step in [("save", 3), ("step", 2), ("step", 3), ("step", 3)]] == [
        *(None, None, "nan", None)
    ]


def test_a_fault_of_every_attempt():
    fault = Fault("raise", 0, 3, "save", None)
    for attempt in (1, 7):
        with pytest.raises(InjectedFault, match="save of step 3"):
            FaultInjector([fault], 0, attempt)("save", 3)


def test_a_fault_in_the_data_strikes_wherever_its_position_is_fed():
    fault = Fault("nan", 0, 3, attempt=None, position=20)
    assert FaultInjector([fault], 0, 1)("step", 3, [[16, 24]]) == "nan"
    assert FaultInjector([fault], 0, 3)("step", 3, [[16, 20], [24, 28]]) is None
    assert parse_faults(format_faults([fault])) == (fault,)
