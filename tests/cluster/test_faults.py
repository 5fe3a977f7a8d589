"""Faults as data."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from zerofleet.cluster.faults import Fault, FaultInjector, InjectedFault, faults_of, format_faults, parse_faults
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


def test_the_trainer_is_told_what_to_do_to_itself():
    for kind in ("nan", "spike", "wrong_sample"):
        assert FaultInjector([Fault(kind, 0, 3)], 0, 1)("step", 3) == kind


def test_garbage_is_of_a_delta():
    with pytest.raises(UserError, match="its point is `outer`, not 'step'"):
        parse_faults('[{"kind": "garbage", "rank": 0, "step": 3}]')
    (fault,) = parse_faults('[{"kind": "garbage", "rank": 0, "step": 3, "point": "outer"}]')
    assert FaultInjector([fault], 0, 1)("outer", 4) == "garbage"


def test_a_fault_of_every_attempt():
    fault = Fault("raise", 0, 3, "save", None)
    for attempt in (1, 7):
        with pytest.raises(InjectedFault, match="save of step 3"):
            FaultInjector([fault], 0, attempt)("save", 3)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"kind": "kill", "step": 3}, "kill strikes a rank"),
        ({"kind": "kill", "rank": 1, "step": "soon"}, "step='soon' of kill must be a whole number"),
        ({"kind": "kill", "rank": -1, "step": 3}, "rank=-1 of kill"),
        ({"kind": "kill", "rank": 1, "step": 3, "attempt": 0}, "attempt=0 of kill"),
        ({"kind": "kill", "rank": 1, "step": 3, "for_s": 2}, "for_s belongs to disk_full, storage_outage"),
        ({"kind": "disk_full", "step": 3, "for_s": -1}, "for_s=-1 of disk_full"),
        ({"kind": "storage_outage", "step": 3}, "storage_outage needs for_s"),
        ({"kind": "cut_node", "step": 3}, "cut_node strikes the node of a rank"),
    ],
)
def test_what_makes_no_sense_is_refused(entry, words):
    with pytest.raises(UserError, match=re.escape(words)):
        faults_of([entry], "plan.yaml")


def test_what_strikes_from_outside_needs_somebody_there():
    (fault,) = faults_of([{"kind": "kill_driver", "step": 3}], "plan.yaml")
    assert (fault.rank, fault.attempt) == (0, 1)
    with pytest.raises(UserError, match="zerofleet chaos"):
        parse_faults(format_faults([fault]))
    assert parse_faults(format_faults([replace(fault, gate="/tmp/gate")]))[0].gate == "/tmp/gate"


def test_a_point_that_is_not_at_every_step_is_waited_for():
    fault = Fault("nan", 0, 7, "save")
    assert [FaultInjector([fault], 0, 1)("save", step) for step in (6, 7, 9)] == [None, "nan", "nan"]
    assert FaultInjector([Fault("nan", 0, 7)], 0, 1)("step", 8) is None


def test_nobody_at_the_gate_is_no_fault():
    fault = Fault("raise", 0, 3, gate="/nonexistent/gate")
    assert FaultInjector([fault], 0, 1)("step", 3) is None


def test_a_fault_in_the_data_strikes_wherever_its_position_is_fed():
    fault = Fault("nan", 0, 3, attempt=None, position=20)
    assert FaultInjector([fault], 0, 1)("step", 3, [[16, 24]]) == "nan"
    assert FaultInjector([fault], 0, 3)("step", 3, [[16, 20], [24, 28]]) is None
    assert parse_faults(format_faults([fault])) == (fault,)
