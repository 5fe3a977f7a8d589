"""A rank's end of its socket."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.fakes import event
from zerofleet.cluster.rank import AgentLink
from zerofleet.trainer.credentials import VARIABLE
from zerofleet.trainer.errors import CheckpointUnusable, DataError, LossSpike, NonFiniteStep
from zerofleet.trainer.events import Control, Event
from zerofleet.trainer.world import World

WORLD = World(rank=1, local_rank=1, node_rank=0, world_size=2, node_name="a", attempt=3)


@pytest.fixture
def link():
    agent, rank = socket.socketpair()
    with agent, rank:
        yield agent, AgentLink(rank, WORLD)


def ask(agent: socket.socket, *actions: str) -> None:
    agent.sendall(b"".join(json.dumps({"action": action}).encode() + b"\n" for action in actions))


def heard(agent: socket.socket) -> Event:
    return Event.from_json(agent.recv(1 << 16).decode())


def test_events_go_up_as_lines(link):
    agent, rank = link
    rank.report(event("step", 3, 1, 7, loss=1.5))
    assert heard(agent) == event("step", 3, 1, 7, loss=1.5)


def test_nothing_was_asked(link):
    assert link[1].control() == Control("none")


def test_a_save_is_given_out_once_and_a_stop_stays(link):
    agent, rank = link
    ask(agent, "save")
    assert [rank.control().action for _ in range(2)] == ["save", "none"]
    ask(agent, "stop", "save")
    assert [rank.control().action for _ in range(2)] == ["stop", "stop"]


def test_a_request_that_arrives_in_two_pieces(link):
    agent, rank = link
    agent.sendall(b'{"acti')
    assert rank.control().action == "none"
    agent.sendall(b'on": "stop"}\n')
    assert rank.control().action == "stop"


def test_an_agent_that_has_gone_asks_for_nothing(link):
    agent, rank = link
    agent.close()
    assert rank.control().action == "none"


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:  # noqa: BLE001
        return caught


def test_last_words_tell_what_when_and_where(link):
    agent, rank = link
    rank.report(event("step", 3, 1, 7))
    heard(agent)
    rank.last_words(raised(ValueError("bad")))
    said = heard(agent)
    assert (said.kind, said.attempt, said.rank, said.step, said.phase) == ("error", 3, 1, 7, "step")
    assert (said.data["type"], said.data["message"], said.data["user"]) == ("ValueError", "bad", False)
    assert "raise error" in said.data["traceback"]
    assert said.data["frames"][0].endswith(" raised")


@pytest.mark.parametrize(
    ("error", "key", "value"),
    [
        (DataError("empty"), "user", True),
        (
            NonFiniteStep(8, float("nan"), [[56, 64]]),
            "bad_step",
            {"step": 8, "ranges": [[56, 64]], "loss": None},
        ),
        (LossSpike(8, 9.5, 20.0, 12.0, [[56, 64]]), "bad_step", {"step": 8, "ranges": [[56, 64]], "loss": 9.5}),
        (CheckpointUnusable(5, 2, "hash"), "checkpoint", {"step": 5, "attempt": 2, "reason": "hash"}),
    ],
)
def test_what_the_controller_acts_upon(link, error, key, value):
    agent, rank = link
    rank.last_words(raised(error))
    assert heard(agent).data[key] == value


RANK = """
import socket, sys
from tests.cluster.test_rank import WORLD
from zerofleet.cluster.rank import run_rank
from zerofleet.cluster.spec import JobSpec, RankSpec

agent, rank = socket.socketpair()
spec = RankSpec(JobSpec("r", '{"wJalrXUtnFEMI": 1}', ""), WORLD, {}, sys.argv[1])
sys.exit(run_rank(spec, rank, lambda target: None))
"""


def test_the_log_of_a_rank_holds_no_credentials(tmp_path):
    """Its config is none, and the traceback says what is wrong with it."""
    environment = {**os.environ, "STORE_KEY": "wJalrXUtnFEMI", VARIABLE: "STORE_KEY"}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", RANK, str(tmp_path / "log")], cwd=root, env=environment, check=False)
    log = (tmp_path / "log").read_text()
    assert done.returncode == 1 and "validation error" in log and "***" in log and "wJalrXUtnFEMI" not in log
