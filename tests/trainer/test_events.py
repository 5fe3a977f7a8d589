"""Events as lines, control as codes."""

from __future__ import annotations

import math

import pytest

from zerofleet.cluster.tasks import WrongResult
from zerofleet.trainer.errors import (
    CheckpointUnusable,
    LossSpike,
    NonFiniteStep,
    ReplicaDivergence,
    SnapshotUnreachable,
    WrongProbe,
)
from zerofleet.trainer.events import ACTIONS, Control, Event
from zerofleet.trainer.world import World


def test_an_event_survives_the_way_as_one_line():
    event = Event("step", 2, 1, 30, "step", 12.5, 0.25, {"loss": math.inf, "text": "a\nb"})
    assert "\n" not in event.to_json() and Event.from_json(event.to_json()) == event


def test_a_stop_is_stronger_than_a_save():
    codes = [Control(action).code for action in ACTIONS]
    actions = [Control.from_code(code).action for code in codes]
    assert codes == sorted(codes) and actions == ["none", "snapshot", "replicate", "save", "stop"]


@pytest.mark.parametrize(
    "error",
    [
        CheckpointUnusable(4, 2, "why"),
        NonFiniteStep(7, float("inf"), [[48, 56]]),
        LossSpike(7, 9.5, 20.0, 12.0, [[48, 56]]),
        ReplicaDivergence(5, [1, 2]),
        SnapshotUnreachable(4, 2, "refused"),
        WrongResult("wrong", [3]),
        WrongProbe(5, [1, 2], 4.0, 5.0),
    ],
)
def test_errors_survive_the_way_between_ranks(error):
    import pickle

    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) and copy.__dict__ == error.__dict__


def test_a_world_is_read_from_torchruns_variables_and_written_as_them():
    world = World(3, 1, 1, 4, "n", 2)
    again = World.from_env(2, world.env("host", 5))
    assert (again.rank, again.local_rank, again.node_rank, again.world_size) == (3, 1, 1, 4)
    assert World.from_env(1, {}).world_size == 1
