"""`zerofleet list` beside a run that is damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zerofleet.launch import cli

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]


def test_one_damaged_run_is_said_and_the_others_are_listed(recipe, drive, capsys):
    drive("finish")
    for name in ("good", "events", "driver", "bytes"):
        cli.main(["submit", "recipe.yaml", f"run.name={name}"])
    storage = Path(os.environ["ZEROFLEET_STORAGE"])
    (segment,) = (storage / "events/events").glob("*/segment-00000.jsonl")
    segment.write_text("garbage\n" + segment.read_text())
    (storage / "driver/drivers/0001.json").write_text("{")
    (storage / "bytes/job.yaml").write_bytes(b"\xff\xfe\xfa")
    capsys.readouterr()
    assert cli.main(["list"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["RUN", "good"]
    warnings = err.splitlines()
    assert len(warnings) == 3
    assert [line.split(" cannot be read: ")[0] for line in warnings] == [
        "warning: bytes",
        "warning: driver",
        "warning: events",
    ]
    assert "segment-00000.jsonl is damaged: the line b'garbage' is no event" in warnings[2]
