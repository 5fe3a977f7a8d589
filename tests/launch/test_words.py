"""Command lines that are shown for pasting."""

import shlex
import sys

from zerofleet.launch.words import command


def test_a_path_with_spaces_stays_one_word(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/my tools/zerofleet"])
    monkeypatch.setenv("PATH", "")
    assert shlex.split(command("resume", "/my runs/a", "train.steps=6")) == [
        "/my tools/zerofleet",
        "resume",
        "/my runs/a",
        "train.steps=6",
    ]
