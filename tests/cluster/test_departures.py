"""When nodes that leave are asked for."""

from __future__ import annotations

from zerofleet.cluster.departures import LOOK_INTERVAL_S, Departures
from zerofleet.cluster.group import Departure


def test_a_look_is_taken_from_time_to_time_only():
    asked = []

    def ask():
        asked.append(len(asked))
        return [Departure("id", "a", 30.0)]

    departures = Departures(ask)
    assert [d.name for d in departures.look(100.0)] == ["a"]
    assert departures.look(100.0 + LOOK_INTERVAL_S - 0.1) == [] and asked == [0]
    assert departures.look(100.0 + LOOK_INTERVAL_S) != [] and asked == [0, 1]


def test_a_departure_says_how_long_there_is():
    assert str(Departure("id", "a", 29.6)) == "node a (in 30 s)"
    assert str(Departure("id", "a", float("inf"))) == "node a"
