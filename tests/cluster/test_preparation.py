"""Preparation in a thread."""

from __future__ import annotations

import threading

import pytest

from zerofleet.cluster.preparation import Cancelled, Preparation
from zerofleet.trainer.errors import DataError


def test_the_result_and_its_progress():
    said = []

    def work(progress):
        for number in range(1000):
            progress("tokenise", number / 1000, "")
        progress("ready", 1.0, "all")
        return "cache"

    preparation = Preparation(work, lambda kind, **data: said.append((kind, data["stage"], data["fraction"])))
    assert preparation.wait(10) == "cache"
    assert said[0] == ("prepare", "tokenise", 0.0)
    assert said[-1] == ("prepare", "ready", 1.0)
    assert len(said) < 20, "a thousand signs of progress are not a thousand events"


def test_it_takes_longer_than_one_waits():
    gate = threading.Event()
    preparation = Preparation(lambda progress: gate.wait(10), lambda kind, **data: None)
    assert preparation.wait(0.01) is None
    gate.set()
    assert preparation.wait(10) is True


def test_what_it_raises():
    def work(progress):
        raise DataError("no file matches")

    with pytest.raises(DataError, match="no file matches"):
        Preparation(work, lambda kind, **data: None).wait(10)


def test_a_cancelled_one_ends_at_its_next_sign_of_progress():
    started = threading.Event()

    def work(progress):
        while True:
            progress("tokenise", 0.5, "")
            started.set()

    preparation = Preparation(work, lambda kind, **data: None)
    started.wait(10)
    preparation.cancel()
    with pytest.raises(Cancelled):
        preparation.wait(10)
