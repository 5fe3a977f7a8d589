"""The matrix as data, and its report."""

from __future__ import annotations

import pytest

from zerofleet.benchmarks.fault_matrix import cells, markdown, read_matrix
from zerofleet.cluster.faults import KINDS
from zerofleet.trainer.errors import UserError

MATRIX = {
    "phases": {"step": {"point": "step", "step": 5}, "recovery": {"point": "load", "step": 0, "attempt": 2, "before": [{"kind": "kill", "rank": 1, "step": 3}]}},
    "faults": {
        "kill rank": {"plan": [{"kind": "kill", "rank": 1}], "phases": ["step", "recovery"]},
        "zombie": {"before": [{"kind": "kill", "rank": 0, "step": 2}], "plan": [{"kind": "zombie", "attempt": 2}], "phases": ["step"], "job": ["train.steps=9"]},
    },
    "test": ["kill rank / step"],
}  # fmt: skip


def test_a_cell_is_what_leads_there_and_the_fault_in_the_phases_place():
    kill, recovery, zombie = cells(MATRIX, 10)
    assert [(f.kind, f.rank, f.step, f.point, f.attempt) for f in kill.plan] == [("kill", 1, 5, "step", 1)]
    assert [(f.kind, f.step, f.point, f.attempt) for f in recovery.plan] == [
        ("kill", 3, "step", 1),
        ("kill", 0, "load", 2),
    ]
    assert [(f.kind, f.step, f.attempt) for f in zombie.plan] == [("kill", 2, 1), ("zombie", 5, 2)]
    assert (kill.name, recovery.run_name, zombie.overrides) == (
        "kill rank / step",
        "kill-rank-at-recovery",
        ("train.steps=9",),
    )
    assert [cell.in_tests for cell in (kill, recovery, zombie)] == [True, False, False]


def test_a_fault_after_the_last_step_is_a_mistake():
    with pytest.raises(UserError, match="kill rank / step: kill at step 5 never strikes"):
        list(cells(MATRIX, 4))


def test_the_matrix_has_every_kind_of_fault_but_an_exception_of_our_own_and_what_only_silos_do():
    assert {fault.kind for cell in cells(read_matrix(), 40) for fault in cell.plan} == set(KINDS) - {
        "raise",
        "wrong_sample",
        "garbage",
    }


def test_the_report_says_what_holds_and_why_the_rest_does_not():
    good = {"fault": "kill rank", "phase": "step", "detected_s": 0.01, "restored_s": 1.234, "total_s": 12.0, "repeated_steps": 0, "attempts": 2, "resumes": 0, "state": "FINISHED", "problems": []}  # fmt: skip
    bad = {**good, "fault": "freeze", "restored_s": None, "problems": ["it waits"]}
    environment = {"processor": "p", "cores": 2, "memory_gib": 4.0, "python": "3.11", "packages": {"torch": "2.13"}, "load_average": [0.5]}  # fmt: skip
    text = markdown(
        {
            "date": "2026-01-01",
            "cells": [good, bad],
            "environment": environment,
            "unbroken_s": 9.0,
            "job": ["train.steps=40"],
        }
    )
    assert "1 of 2 cells hold" in text
    assert "| kill rank | step | 0.01 | 1.23 | 12.00 | 0 | 2 | 0 | finished |" in text
    assert (
        "| freeze | step | 0.01 | - | 12.00 | 0 | 2 | 0 | **fails** |" in text and "**freeze / step**: it waits" in text
    )
