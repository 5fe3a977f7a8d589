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


def test_ranks_of_other_hosts_come_over_the_network():
    seen = []

    def strike(arrival: Arrival) -> bool:
        seen.append(arrival.step)
        return True

    with Gate(strike, "127.0.0.1") as gate:
        assert gate.path.startswith("127.0.0.1:")
        assert announce(gate.path, Arrival(0, 1, 17, 1)) is True
        where = gate.path.rpartition("/")[0]
        assert announce(f"{where}/guessed", Arrival(0, 1, 18, 1)) is False, "whoever does not know the token"
        host, _, port = where.rpartition(":")
        for line in (b"[]\n", b"no json\n", b'{"token": 3}\n', b"\n", b'"' + bytes(5000)):
            with socket.create_connection((host, int(port)), 5) as link:
                link.sendall(line)
                link.shutdown(socket.SHUT_WR)
                assert link.recv(1) == b""
        assert announce(gate.path, Arrival(0, 1, 19, 1)) is True, "it goes on listening"
    assert seen == [17, 19]
    assert announce(gate.path, Arrival(0, 1, 20, 1)) is False, "nobody is there any more"
