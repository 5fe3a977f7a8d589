"""`zerofleet simulate`: what it is told and what it says."""

from __future__ import annotations

import json

import pytest

from zerofleet.launch.cli import main


def test_sizes_side_by_side_said_to_be_simulated(capsys):
    assert main(["simulate", "--gpus", "8", "16", "--days", "0.02", "train.zero_stage=1", "--cost", "step_s=5"]) == 0
    told = capsys.readouterr().out
    assert (
        told.startswith("| simulated: GPUs | 8 | 16 |")
        and "8.03 B parameters under ZeRO-1" in told
        and "step 5 s" in told
    )
    rows = [line for line in told.splitlines() if line.startswith("|")]
    assert all(line.count("|") == 4 for line in rows)


def test_as_json_with_the_source_of_every_number(capsys):
    assert main(["simulate", "--gpus", "8", "--days", "0.02", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["is_simulated"] and found["runs"][0]["is_simulated"]
    assert found["sources"].keys() == found["runs"][0]["scenario"]["costs"].keys()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpus", "12"], "give a multiple of cluster.ranks_per_node=8"),
        (["--rates", "ours"], "--rates ours is not known: choose one of llama3"),
        (["--cost", "steps=5"], "--cost steps=5: give NAME=NUMBER"),
        (["--cost", "step_s=quick"], "--cost step_s=quick"),
        (["--days", "0"], "--days and --micro-steps must be above 0"),
    ],
)
def test_mistakes(arguments, said, capsys):
    assert main(["simulate", *arguments]) == 2
    assert said in capsys.readouterr().err
