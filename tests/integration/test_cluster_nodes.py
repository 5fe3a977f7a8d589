"""A group over several raylets (tests/integration/two_nodes.py): worlds, gang placement, loss of a node, replacement."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_ADDRESS": ""}
    environment = {**os.environ, **token, "PYTHONPATH": str(ROOT), "RAY_health_check_period_ms": "500"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.two_nodes", str(tmp_path_factory.mktemp("nodes"))],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=170,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("SEEN ")]
    assert lines, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(lines[0].removeprefix("SEEN "))


pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]


def test_two_nodes_are_placed_and_hold_all_that_was_asked(seen):
    assert seen["missing"] == ""
    assert seen["free"] == 0.0
    assert seen["agents"] == 2


def test_ranks_know_where_they_are(seen):
    assert seen["worlds"] == [[0, 0, 0, 4], [1, 1, 0, 4], [2, 0, 1, 4], [3, 1, 1, 4]]
    assert seen["killed"] == [0, 1, 2, 3]


def test_a_lost_node_is_told_and_replaced(seen):
    assert seen["lost"] == seen["doomed"] != []
    assert seen["missing_after_loss"] == ""
    assert seen["ranks_after_loss"] == [0, 1, 2, 3]


def test_a_node_is_left_out_only_where_another_takes_its_place(seen):
    assert seen["left_out_without_a_spare"] == []
    assert (seen["left_out"], seen["missing_without_it"], seen["nodes_without_it"]) == (
        ["third"],
        "",
        ["first", "fourth"],
    )
    assert seen["left_out_again"] == [], "the one that was left out is no spare"


def test_what_never_fits_and_what_is_waited_for(seen):
    assert "can never hold" in seen["never"]
    assert "asked for 4 node(s) with 2 CPUs each (2 ranks per node); 3 found" in seen["waiting"]
