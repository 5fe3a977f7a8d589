"""Insisting on storage: when it is tried, what is said, and that it has an end."""

from __future__ import annotations

import pytest

from zerofleet.cluster.waiting import Insistence, Limit
from zerofleet.trainer.errors import StorageError, UserError


class World:
    def __init__(self, failures: int, error: Exception = StorageError("no route")) -> None:
        self.left, self.error = failures, error
        self.tried: list[float] = []
        self.said: list[str] = []
        self.given_up: list[tuple[float, str]] = []
        self.insistence = Insistence(self.said.append)

    def action(self, now: float) -> None:
        self.tried.append(now)
        if self.left:
            self.left -= 1
            raise self.error

    def run(self, limit_s: float = 100.0) -> None:
        give_up = lambda now, why: self.given_up.append((now, why))  # noqa: E731
        self.insistence.begin(0.0, "the train cannot start", self.action, give_up, Limit("cluster.x_s", limit_s))
        now = 0.0
        while self.insistence.is_waiting:
            now += 0.25
            assert now < 10 * limit_s, "no end"
            self.insistence.step(now)


def test_what_goes_well_at_once_is_done_at_once_and_says_nothing():
    world = World(0)
    world.run()
    assert world.tried == [0.0] and not world.said and not world.insistence.is_waiting


def test_it_backs_off_says_so_and_goes_on_when_storage_is_back():
    world = World(4)
    world.run()
    assert len(world.tried) == 5 and world.given_up == []
    pauses = [after - before for before, after in zip(world.tried, world.tried[1:], strict=False)]
    assert pauses[-1] > pauses[0] and pauses[-1] >= 2.0
    assert len(world.said) == 1 and "the train cannot start: storage is down since" in world.said[0]
    assert "cluster.x_s=100" in world.said[0] and "no route" in world.said[0]


def test_past_the_limit_it_gives_up_once_and_says_since_when():
    world = World(10**6)
    world.run(limit_s=20.0)
    [(at, why)] = world.given_up
    assert 20.0 <= at <= 20.25 and world.tried[-1] == at, "tried once more at the limit"
    assert "storage has been down since" in why and "cluster.x_s=20" in why and "no route" in why
    tries = len(world.tried)
    world.insistence.step(1000.0)
    assert len(world.tried) == tries or not world.insistence.is_waiting


def test_what_is_no_matter_of_storage_passes_through():
    world = World(1, UserError("claimed by another driver"))
    with pytest.raises(UserError):
        world.run()
    assert not world.insistence.is_waiting


def test_an_action_may_begin_another():
    world = World(0)
    later = World(1)

    def action(now: float) -> None:
        world.insistence.begin(now, "b", later.action, lambda now, why: None, Limit("l", 9.0))

    world.insistence.begin(0.0, "a", action, lambda now, why: None, Limit("l", 9.0))
    assert world.insistence.is_waiting
    world.insistence.step(5.0)
    assert later.tried == [0.0, 5.0] and not world.insistence.is_waiting
