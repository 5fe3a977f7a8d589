"""The outer server over real sockets, with silos that have no model."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import numpy as np
import pytest

from tests.cluster.outer.silo import Silo
from zerofleet.cluster.outer import rounds as rounds_module
from zerofleet.cluster.outer.rounds import Rounds
from zerofleet.cluster.outer.server import OuterServer
from zerofleet.cluster.outer.state import OuterStore, RoundRecord
from zerofleet.cluster.outer.terms import Terms
from zerofleet.trainer.errors import StorageError
from zerofleet.trainer.silos.codecs import load_codec
from zerofleet.trainer.silos.strategies import load_strategy
from zerofleet.trainer.silos.wire import Refused, Server
from zerofleet.trainer.storage import Storage


class Place:
    """A run folder and the outer server over it; `restart` is another driver's."""

    def __init__(self, folder, quorum=2, deadline_s=600.0, weights=None, keep_rounds=2, **agreed) -> None:
        self.events: list[tuple[str, dict]] = []
        weights = weights or {"a": 1.0, "b": 1.0}
        self.terms = Terms(weights, load_strategy("fedavg"), load_codec("fp32"), quorum, deadline_s, **agreed)
        self.store = OuterStore(Storage(str(folder)), keep_rounds)
        self.restart()

    def restart(self) -> None:
        self.rounds = Rounds(self.terms, self.store, lambda kind, data: self.events.append((kind, data)))
        self.server = OuterServer(self.rounds)

    def silo(self, name: str, number: int = -1, life: str = "1") -> Silo:
        silo = Silo(self.server.where, name, life)
        silo.open(number)
        return silo

    def told(self, kind: str) -> list[dict]:
        return [data for found, data in self.events if found == kind]


@pytest.fixture(autouse=True)
def no_patience(monkeypatch):
    """A verdict that says `wait` says so at once."""
    monkeypatch.setattr(rounds_module, "VERDICT_S", 0.01)


@pytest.fixture
def place(tmp_path):
    found = Place(tmp_path)
    yield found
    found.server.close()


def two(place) -> tuple[Silo, Silo]:
    """Both after round 0: all weights are 1."""
    one, other = place.silo("a"), place.silo("b")
    one.seed()
    return one, other


def test_the_mean_is_weighted_by_tokens_and_everyone_gets_it(place):
    one, other = two(place)
    one.push(1, 0.5, tokens=30)
    assert one.verdict(1) == ("wait", 0)
    other.push(1, 0.1, tokens=10)
    assert other.verdict(1) == ("done", 1) and one.verdict(1) == ("done", 1)
    assert one.weights(1) == other.weights(1) == pytest.approx([1 - (0.75 * 0.5 + 0.25 * 0.1)] * 8)
    assert place.told("round")[0]["tokens"] == {"a": 30, "b": 10}


def test_the_order_of_deliveries_changes_no_bit(tmp_path):
    found = []
    for number, order in enumerate((("a", "b", "c"), ("c", "b", "a"))):
        place = Place(tmp_path / str(number), quorum=3, weights={"a": 1.0, "b": 2.0, "c": 0.3})
        silos = {name: place.silo(name) for name in order}
        silos[order[0]].seed()
        for name in order:
            silos[name].push(1, {"a": 0.1, "b": 0.7, "c": -0.3}[name], tokens=ord(name))
        assert silos["a"].verdict(1) == ("done", 1)
        found.append(silos["a"].weights(1))
        place.server.close()
    assert found[0] == found[1]


def test_a_silo_that_was_killed_and_repeats_gets_the_same_again(place):
    one, other = two(place)
    one.push(1, 0.5)
    other.push(1, 0.1)
    assert one.verdict(1) == ("done", 1)
    before = one.weights(1)
    again = Silo(place.server.where, "a", life="2")
    assert again.open(0) == 0, "its state is that of round 0, which is kept"
    again.push(1, 0.5)
    assert again.verdict(1) == ("done", 1)
    assert again.weights(1) == before
    assert len(place.told("round")) == 1


def test_what_an_attempt_before_has_sent_in_part_does_not_count(place):
    one, other = two(place)
    one.push(1, 9.0, is_last=False)
    again = place.silo("a", 0, life="2")
    one.push(1, 9.0)  # a zombie
    other.push(1, 0.0)
    assert other.verdict(1) == ("wait", 0)
    again.push(1, 0.5)
    assert again.verdict(1) == ("done", 1)
    assert again.weights(1) == pytest.approx([0.75] * 8)


def test_another_driver_goes_on_from_the_newest_round(place):
    one, other = two(place)
    one.push(1, 0.5)
    other.push(1, 0.1)
    assert one.verdict(1) == ("done", 1)
    place.server.close()
    place.restart()
    one, other = place.silo("a", 1), place.silo("b", 1)
    assert one.verdict(1) == ("done", 1)
    one.push(2, 0.5)
    other.push(2, 0.1)
    assert one.verdict(2) == ("done", 2)
    assert one.weights(2) == pytest.approx([0.4] * 8)


def test_nan_is_rejected_and_named_and_the_others_go_on(tmp_path):
    place = Place(tmp_path, quorum=1)
    one, other = two(place)
    body = np.full(8, np.nan, np.float32).tobytes()
    other.push_raw(1, [("w", 0, 6, 24), ("b", 0, 2, 8)], body)
    one.push(1, 0.5)
    assert one.verdict(1) == ("done", 1)
    assert other.verdict(1) == ("rejected", 1)
    assert one.weights(1) == pytest.approx([0.5] * 8)
    (incident,) = [data for data in place.told("incident") if data.get("silo") == "b"]
    assert "silo b" in incident["message"] and "nan" in incident["message"]
    assert place.told("round")[0]["rejected"].keys() == {"b"}
    place.server.close()


@pytest.mark.parametrize(
    ("spans", "size", "says"),
    [
        ([("w", 0, 6, 24)], 24, "element 0 of b came never"),
        ([("w", 0, 6, 24), ("x", 0, 2, 8)], 32, "of x are none of the model's"),
        ([("w", 4, 6, 24)], 24, "of w are none of the model's"),
        ([("w", 0, 6, 23)], 23, "bytes"),
    ],
)
def test_garbage_is_rejected_and_named(place, spans, size, says):
    one, other = two(place)
    one.push_raw(1, spans, bytes(size))
    assert says in place.told("incident")[0]["message"]
    other.push(1, 0.1)
    assert other.verdict(1) == ("late", 1)
    assert other.weights(1) == [1.0] * 8, "one delta is below the quorum of two: no step"


def test_in_a_round_that_changed_nothing_nobody_is_done(place):
    """What a silo has delivered for it is in no weights: it may not forget what earlier deltas left out."""
    one, other = two(place)
    one.push(1, 0.5)
    other.push(1, 0.1, tokens=0)
    assert one.verdict(1) == ("late", 1) and other.verdict(1) == ("rejected", 1)
    (told,) = place.told("round")
    assert (told["is_step"], told["tokens"], told["rejected"].keys()) == (False, {}, {"b"})
    assert place.store.record_of(1).tokens == {}


def test_a_round_without_a_step_that_an_earlier_version_recorded_with_tokens(place):
    two(place)
    state = place.store.newest()
    place.store.save(replace(state, record=RoundRecord(1, {"a": 10}, is_step=False)))
    place.server.close()
    place.restart()
    assert place.silo("a", 0).verdict(1) == ("late", 1)


@pytest.mark.parametrize("tokens", [0, -10, 2.5, True, "10", None, 2**53 + 1])
def test_a_claim_of_tokens_that_cannot_count_is_rejected_and_named_and_the_others_go_on(tmp_path, tokens):
    """With it the round could never be closed, whoever asked."""
    place = Place(tmp_path, quorum=1)
    one, other = two(place)
    other.push(1, 0.1, tokens=tokens)
    one.push(1, 0.5)
    assert one.verdict(1) == ("done", 1) and other.verdict(1) == ("rejected", 1)
    assert one.weights(1) == pytest.approx([0.5] * 8)
    (incident,) = [data for data in place.told("incident") if data.get("silo") == "b"]
    assert f"it claims {tokens!r} tokens: that is no whole number from 1 to" in incident["message"]
    place.server.close()


def test_weights_whose_plain_sum_is_below_their_exact_one_close_a_round(tmp_path):
    weights = {"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1}
    assert sum(weights.values()) < 1
    place = Place(tmp_path, quorum=4, weights=weights)
    silos = {name: place.silo(name) for name in weights}
    silos["a"].seed()
    for name in weights:
        silos[name].push(1, 0.5, tokens=2**18)
    assert {silo.verdict(1) for silo in silos.values()} == {("done", 1)}
    assert silos["a"].weights(1) == pytest.approx([0.5] * 8)
    place.server.close()


def test_a_delta_far_from_the_others_is_garbage(tmp_path):
    place = Place(tmp_path, quorum=2, weights={"a": 1.0, "b": 1.0, "c": 1.0})
    silos = {name: place.silo(name) for name in "abc"}
    silos["a"].seed()
    for name, delta in (("a", 0.1), ("b", 0.2), ("c", 60.0)):
        silos[name].push(1, delta)
    assert silos["a"].verdict(1) == ("done", 1)
    assert silos["c"].verdict(1)[0] == "rejected"
    assert silos["a"].weights(1) == pytest.approx([0.85] * 8)
    place.server.close()


@pytest.mark.parametrize(
    ("agreed", "expected"),
    [
        ({}, 1 - (0.1 + 0.2 + 0.3 + 0.4 - 1.5) / 5),
        ({"aggregation": "trimmed_mean", "trimmed_fraction": 0.2}, 1 - (0.1 + 0.2 + 0.3) / 3),
        ({"aggregation": "trimmed_mean", "trimmed_fraction": 0.3}, 1 - 0.2),
        ({"aggregation": "median"}, 1 - 0.2),
    ],
)
def test_one_silo_of_five_that_sends_nonsense_of_a_usual_size(tmp_path, agreed, expected):
    """It also says that it had a thousand times as many tokens, which the plain mean would believe."""
    place = Place(tmp_path, quorum=4, weights=dict.fromkeys("abcde", 1.0), **agreed)
    silos = {name: place.silo(name) for name in "abcde"}
    silos["a"].seed()
    for name, delta in (("a", 0.1), ("b", 0.2), ("c", 0.3), ("d", 0.4), ("e", -1.5)):
        silos[name].push(1, delta, tokens=10_000 if agreed and name == "e" else 10)
    assert silos["a"].verdict(1) == ("done", 1) == silos["e"].verdict(1), "nobody sees it"
    assert silos["a"].weights(1) == pytest.approx([expected] * 8)
    place.server.close()


def test_the_deadline_leaves_out_who_is_late_and_it_goes_on_from_the_newest_weights(tmp_path):
    place = Place(tmp_path, quorum=1, deadline_s=0.02)
    one, other = two(place)
    one.push(1, 0.5)
    while one.verdict(1)[0] == "wait":
        pass
    one.push(2, 0.25)
    while one.verdict(2)[0] == "wait":
        pass
    other.push(1, 0.1)
    assert other.verdict(1) == ("late", 2)
    assert other.weights(2) == pytest.approx([0.25] * 8)
    assert [data["missing"] for data in place.told("round")] == [["b"], ["b"]]
    place.server.close()


def test_below_the_quorum_the_round_waits_and_says_so_once(tmp_path):
    place = Place(tmp_path, quorum=2, deadline_s=0.01)
    one, _ = two(place)
    one.push(1, 0.5)
    for _ in range(5):
        assert one.verdict(1)[0] == "wait"
    (incident,) = place.told("incident")
    assert "waits for b: 1 silos have delivered, the quorum is 2" in incident["message"]
    place.server.close()


def test_who_is_gone_is_not_waited_for_and_joins_at_the_newest_round_when_back(tmp_path):
    place = Place(tmp_path, quorum=1)
    one, _ = two(place)
    place.rounds.gone("b")
    one.push(1, 0.5)
    assert one.verdict(1) == ("done", 1)
    back = Silo(place.server.where, "b", life="2")
    assert back.open(-1) == 1
    assert "silo b joins at round 1" in place.told("info")[0]["message"]
    one.push(2, 0.5)
    assert one.verdict(2) == ("wait", 1)
    back.push(2, 0.5)
    assert one.verdict(2) == ("done", 2)
    place.server.close()


def test_a_silo_whose_round_is_no_longer_kept_goes_on_from_the_newest(place):
    one, other = two(place)
    for number in (1, 2, 3):
        one.push(number, 0.1)
        other.push(number, 0.1)
        assert one.verdict(number) == ("done", number)
    assert Silo(place.server.where, "b", life="2").open(2) == 2
    assert Silo(place.server.where, "b", life="3").open(1) == 3


def test_storage_that_does_not_take_a_round_is_waited_for(place, monkeypatch):
    one, other = two(place)
    monkeypatch.setattr(rounds_module, "_RETRY_S", 0.0)
    one.push(1, 0.5)
    other.push(1, 0.1)
    save, tries = place.store.save, []

    def fails_once(state):
        tries.append(state)
        if len(tries) == 1:
            raise StorageError("the disk is full")
        save(state)

    monkeypatch.setattr(place.store, "save", fails_once)
    while one.verdict(1)[0] == "wait":
        pass
    assert one.weights(1) == pytest.approx([0.7] * 8), "one step, not two"
    assert "the disk is full" in place.told("incident")[0]["message"]


def test_a_round_that_is_saved_and_cannot_be_looked_at_is_closed_once(place, monkeypatch):
    one, other = two(place)
    monkeypatch.setattr(rounds_module, "_RETRY_S", 0.0)
    one.push(1, 0.5)
    other.push(1, 0.1)
    look, tries = place.store.rounds, []

    def fails_after_the_save():
        tries.append(1)
        if len(tries) == 2:  # the first is the save's own
            raise StorageError("the network is down")
        return look()

    monkeypatch.setattr(place.store, "rounds", fails_after_the_save)
    while (answer := one.verdict(1))[0] == "wait":
        pass
    assert answer == ("done", 1) and other.verdict(1) == ("done", 1)
    assert one.weights(1) == pytest.approx([0.7] * 8), "one step, not two"
    one.push(2, 0.5)
    other.push(2, 0.1)
    assert one.verdict(2) == ("done", 2), "the next deltas are taken"


@pytest.mark.parametrize("method", ["save", "weights_of"])
def test_silos_outlast_storage_that_is_down_for_a_moment(place, monkeypatch, method):
    one, other = place.silo("a"), place.silo("b")
    works, tries = getattr(place.store, method), []

    def fails_once(*arguments):
        tries.append(1)
        if len(tries) == 1:
            raise StorageError("the network is down")
        return works(*arguments)

    if method == "save":
        monkeypatch.setattr(place.store, method, fails_once)
        with pytest.raises(ConnectionError):
            one.seed()
        place.silo("a", life="1").seed()
        assert other.open() == 0
        return
    one.seed()
    for number in (1, 2):
        for silo in (one, other):
            silo.push(number, 0.1)
        assert one.verdict(number) == ("done", number)
    monkeypatch.setattr(place.store, method, fails_once)
    with pytest.raises(ConnectionError):
        one.weights(1)
    assert place.silo("a").weights(1) == pytest.approx([0.9] * 8)


def test_a_damaged_round_is_refused_and_not_asked_for_again(place):
    one, other = two(place)
    for number in (1, 2):
        for silo in (one, other):
            silo.push(number, 0.1)
        assert one.verdict(number) == ("done", number)
    path = place.store._storage.local_path("outer/round-00000001/state.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(Refused, match="is damaged"):
        one.weights(1)


def test_a_full_temporary_directory_is_told_and_waited_for(place, monkeypatch):
    one, other = two(place)

    def full(descriptor, offset, num_bytes):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr(os, "posix_fallocate", full)
        one.push(1, 0.5)
    one = place.silo("a", 0)
    one.push(1, 0.5)
    other.push(1, 0.1)
    assert one.verdict(1) == ("done", 1)


def test_what_can_never_be_answered_is_refused(place):
    with pytest.raises(Refused, match="'x' is no silo of this run"):
        Silo(place.server.where, "x").open()
    with pytest.raises(Refused, match="files under outer/ are gone"):
        Silo(place.server.where, "a").open(3)


def test_a_stranger_gets_no_answer(place):
    where = Server(place.server.where.host, place.server.where.port, "guessed")
    with pytest.raises(ConnectionError):
        Silo(where, "a").open()
