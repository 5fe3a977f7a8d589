"""Who arrives at the gate waits until the strike has happened."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from zerofleet.cluster.chaos.gate import Arrival, Gate, announce
from zerofleet.cluster.faults import ONCE, Fault, FaultInjector

pytestmark = pytest.mark.timeout(20)


def test_a_rank_waits_for_the_strike_and_is_told():
    seen, go_on = [], threading.Event()

    def strike(arrival: Arrival) -> bool:
        seen.append(arrival)
        return go_on.wait(10)

    with Gate(strike) as gate:
        answers = []
        rank = threading.Thread(target=lambda: answers.append(announce(gate.path, Arrival(3, 2, 17, 4711))))
        rank.start()
        rank.join(0.2)
        assert rank.is_alive(), "it waits"
        go_on.set()
        rank.join(10)
        assert answers == [True]
    (arrival,) = seen
    assert (arrival.fault, arrival.attempt, arrival.step, arrival.pid) == (3, 2, 17, 4711) and arrival.at > 0


def test_a_fault_of_any_attempt_strikes_once():
    struck = []

    def strike(arrival: Arrival) -> bool:
        if struck:
            return False
        struck.append(arrival.attempt)
        return True

    with Gate(strike) as gate:
        fault = Fault("nan", 0, 5, attempt=ONCE, gate=gate.path)
        assert [FaultInjector([fault], 0, attempt)("step", 5) for attempt in (1, 2)] == ["nan", None]
    assert struck == [1]


def test_a_strike_that_fails_lets_the_rank_go_on():
    def strike(arrival: Arrival) -> bool:
        raise LookupError("no agent")

    with Gate(strike) as gate:
        assert announce(gate.path, Arrival(0, 1, 2, os.getpid())) is False


def test_a_rank_that_dies_in_the_middle_does_not_close_the_gate():
    with Gate(lambda arrival: True) as gate:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.connect(gate.path)
        assert announce(gate.path, Arrival(0, 1, 2, os.getpid())) is True


def test_nothing_is_left_of_a_gate():
    with Gate(lambda arrival: True) as gate:
        assert Path(gate.path).exists()
    assert not Path(gate.path).parent.exists()
    assert announce(gate.path, Arrival(0, 1, 2, os.getpid())) is False
