"""The merge of outer weights with what a silo has learned meanwhile, and the thread that brings them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from zerofleet.trainer.checkpoint.adapters import Slot
from zerofleet.trainer.silos.overlap import LANDINGS, Flight, merged

SLOTS = [Slot("w", "master", 0, torch.zeros(3), 0, 3)]
WEIGHTS = [(SLOTS[0], np.ones(3, np.float32))]


def test_what_was_learned_since_the_boundary_is_carried_over():
    outer, boundary = np.array([1.0, 2.0], np.float32), torch.tensor([0.5, 0.25])
    found = merged(outer, boundary + torch.tensor([0.125, -1.0]), boundary)
    assert found.tolist() == [1.125, 1.0]
    assert torch.equal(merged(outer, boundary, boundary), torch.from_numpy(outer)), "without steps between them"


@pytest.mark.parametrize("overlap_steps", [1, 3, 4])
def test_every_inner_update_is_in_exactly_one_delta(overlap_steps):
    """Whole numbers as updates, so that sums are exact: all deltas together are all updates of all rounds."""
    draw, interval = np.random.default_rng(0), 4
    updates = torch.from_numpy(draw.integers(-9, 9, (5 * interval, 3)).astype(np.float32))
    now, base, on_its_way, deltas = torch.zeros(3), np.zeros(3, np.float32), None, []
    for step, update in enumerate(updates, 1):
        now = now + update
        if on_its_way and step == on_its_way[0] + overlap_steps:
            base = draw.integers(-99, 99, 3).astype(np.float32)  # whatever the others have made of it
            now = merged(base, now, on_its_way[1])
            on_its_way = None
        if step % interval == 0:
            deltas.append(torch.from_numpy(base) - now)
            on_its_way = step, now.clone()
    expected = -updates.reshape(5, interval, 3).sum(dim=1)
    assert torch.equal(torch.stack(deltas), expected)


class Server:
    """In place of the questions: answers one by one, an OSError among them is raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.asked = list(answers), []

    def _next(self, what: str) -> Any:
        self.asked.append(what)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def send(self, op: str, messages: list[str]) -> int:
        return self._next(f"{op} {' '.join(messages)}")

    def verdict(self, number: int) -> dict[str, Any]:
        return {"state": self._next(f"verdict {number}")}

    def pull(self, number: int, slots: list[Slot]) -> Any:
        return self._next(f"pull {number} {slots[0].name}")


def landed(server: Server) -> tuple[Flight, list[str], str]:
    """The flight, what was said of the server's absence, and what came of it."""
    away: list[str] = []
    flight = Flight(server, 7, lambda: ["delta"], SLOTS, lambda error: away.append(str(error)), 0.0)  # type: ignore[arg-type]
    return flight, away, LANDINGS[flight.look(30.0)]


def test_a_delta_goes_and_the_outer_weights_come():
    flight, away, state = landed(server := Server(0, "wait", "wait", "done", WEIGHTS))
    assert (state, away) == ("done", [])
    assert server.asked == ["push delta", "verdict 7", "verdict 7", "verdict 7", "pull 7 w"]
    assert flight.pulled is WEIGHTS and flight.handed_over_at <= flight.arrived_at


@pytest.mark.parametrize("state", ["late", "rejected"])
def test_a_delta_that_came_to_nothing_brings_no_weights(state):
    flight, _, found = landed(server := Server(0, state))
    assert found == state and flight.pulled == [] and server.asked[-1] == "verdict 7"


def test_a_server_that_is_away_is_asked_again_from_the_first_message_on():
    gone = ConnectionError("gone")
    _, away, state = landed(server := Server(gone, gone, 0, gone, "done", gone, WEIGHTS))
    assert state == "done" and away == ["gone"] * 4
    assert server.asked == ["push delta"] * 3 + ["verdict 7"] * 2 + ["pull 7 w"] * 2


def test_what_ends_it_is_raised_in_the_ranks_own_thread():
    flight = Flight(Server(ValueError("no")), 7, lambda: ["delta"], SLOTS, lambda error: None, 0.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no"):
        flight.look(30.0)
