"""Nothing that a process writes holds the credentials that it has in its environment."""

from __future__ import annotations

import io
import sys
import traceback

import pytest

from zerofleet.trainer.credentials import VARIABLE, mask_output, masked, masked_event
from zerofleet.trainer.events import Event

KEY = "wJalrXUtnFEMI"


@pytest.fixture
def given(monkeypatch):
    values = {"STORE_KEY": KEY, "STORE_KEY_AND_MORE": f"{KEY}/K7MDENG", "STORE_REGION": "north", "EMPTY": ""}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(VARIABLE, " ".join([*values, "ABSENT"]))
    monkeypatch.setenv("ANOTHER", "of-no-credentials")


def test_values_are_masked_the_longest_first_and_short_ones_are_left(given):
    assert masked(f"{KEY}/K7MDENG and {KEY} in north of-no-credentials") == "*** and *** in north of-no-credentials"


def test_an_event_is_masked_wherever_it_holds_text(given):
    data = {"message": f"no {KEY}", "frames": [f"{KEY}:3", 4], "cause": {"why": KEY, "loss": 1.5}}
    found = masked_event(Event("error", 1, 0, 3, "step", 1.0, data=data))
    assert found.data == {"message": "no ***", "frames": ["***:3", 4], "cause": {"why": "***", "loss": 1.5}}
    assert data["message"] == f"no {KEY}", "whoever made it keeps it"


def test_without_credentials_nothing_is_touched():
    event, stream = Event("info", 1, 0, 3, "step", 1.0, data={"message": KEY}), sys.stdout
    mask_output()
    assert masked_event(event) is event and sys.stdout is stream and masked(KEY) == KEY


def test_output_is_masked_tracebacks_too(given, monkeypatch):
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    mask_output()
    print("the key is", KEY)
    sys.stdout.writelines([f"{KEY}\n", "rest\n"])
    sys.stdout.flush()
    try:
        raise ValueError(f"{KEY} was refused")
    except ValueError as error:
        traceback.print_exception(error)
    assert out.getvalue() == "the key is ***\n***\nrest\n"
    assert "ValueError: *** was refused" in err.getvalue() and "KEY} was refused" in err.getvalue()
