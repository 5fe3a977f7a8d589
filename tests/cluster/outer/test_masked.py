"""Secure aggregation over real sockets, with silos that have no model."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("Crypto", reason="the extra `silos` is not installed")

from tests.cluster.outer.masked_silo import MaskedSilo
from zerofleet.cluster.outer import masked as masked_module
from zerofleet.cluster.outer import rounds as rounds_module
from zerofleet.cluster.outer.rounds import Rounds
from zerofleet.cluster.outer.server import OuterServer
from zerofleet.cluster.outer.state import OuterStore
from zerofleet.cluster.outer.terms import Terms
from zerofleet.trainer.silos.chunks import Chunk
from zerofleet.trainer.silos.codecs import load_codec
from zerofleet.trainer.silos.fixed_point import MASKED
from zerofleet.trainer.silos.masked import GO, OUT, WAIT
from zerofleet.trainer.silos.strategies import load_strategy
from zerofleet.trainer.silos.wire import Refused
from zerofleet.trainer.storage import Storage

LIMIT = 200.0
"""Of tokens in a round."""
DELTAS = {"a": (0.1, 10), "b": (0.7, 30), "c": (-0.3, 20), "d": (0.25, 40)}
"""Delta and tokens, by silo."""


class Place:
    """Silos that have joined, and their server. Outer weights begin as 1."""

    def __init__(self, folder, names: str, quorum: int = 2) -> None:
        self.events: list[tuple[str, dict]] = []
        weights = dict.fromkeys(names, 1.0)
        terms = Terms(weights, load_strategy("fedavg"), load_codec("fp32"), quorum, 600.0, masked_limit=LIMIT)
        store = OuterStore(Storage(str(folder)), 4)
        self.rounds = Rounds(terms, store, lambda kind, data: self.events.append((kind, data)))
        self.server = OuterServer(self.rounds)
        self.silos = {name: self.silo(name) for name in names}
        self.silos[names[0]].seed()

    def silo(self, name: str, number: int = -1, life: str = "1") -> MaskedSilo:
        silo = MaskedSilo(self.server.where, name, life)
        silo.open(number)
        return silo

    def put_masks_on(self, names: str, number: int = 1) -> None:
        """Keys and shares of these, which are all that are there."""
        for name in names:
            self.silos[name].begin(number)
        waiting = list(names)
        while waiting:
            found = {name: self.silos[name].go_on() for name in waiting}
            assert OUT not in found.values()
            waiting = [name for name, state in found.items() if state != GO]

    def push(self, names: str, number: int = 1, is_last: bool = True) -> None:
        for name in names:
            self.silos[name].push_masked(number, *DELTAS[name], LIMIT, is_last)

    def close(self, names: str, number: int = 1) -> list[str]:
        """These help until the round is closed."""
        states = ["wait"]
        while any(state in ("wait", "reveal") for state in states):
            states = [self.silos[name].help(number) for name in names]
        return states

    def told(self, kind: str) -> list[dict]:
        return [data for found, data in self.events if found == kind]


def expected(names: str) -> float:
    total = sum(tokens for _, tokens in map(DELTAS.get, names))
    return 1 - sum(delta * tokens for delta, tokens in map(DELTAS.get, names)) / total


@pytest.fixture(autouse=True)
def no_patience(monkeypatch):
    monkeypatch.setattr(rounds_module, "VERDICT_S", 0.01)


@pytest.fixture(params=["abc", "abcd"])
def place(tmp_path, request):
    found = Place(tmp_path, request.param)
    found.names = request.param
    yield found
    found.server.close()


def quanta(names: str) -> float:
    """Half a quantum of each silo's rounding, by their share of all tokens there could be."""
    return len(names) * MASKED.quantum / 2 * LIMIT / sum(DELTAS[name][1] for name in names) + 1e-7


def test_the_mean_is_exact_to_the_quantum(place):
    names = place.names
    place.put_masks_on(names)
    place.push(names)
    assert place.close(names) == ["done"] * len(names)
    np.testing.assert_allclose(place.silos["a"].weights(1), expected(names), rtol=0, atol=quanta(names))
    (told,) = place.told("round")
    assert told["is_step"] and told["tokens"] == {name: DELTAS[name][1] for name in names}


def test_the_share_of_all_silos_is_the_exact_sum(monkeypatch):
    """A plain sum of these weights is below 1, and the mean would be of more than was sent."""
    shares = []
    monkeypatch.setattr(masked_module, "Unmasker", lambda *secrets: None)
    monkeypatch.setattr(masked_module, "_mean", lambda unmasker, chunk, deliveries, share: shares.append(share))
    round_ = masked_module.MaskedRound(1, 2, 600.0, weight_limit=1.0)
    round_.policy.answered |= {"shares": set(), "deltas": set()}
    round_.means({"w": 1}, {}, {"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1}).of(Chunk("w", 0, 1))
    assert shares == [1.0]


def test_the_server_holds_no_delta(place):
    """Not one element of what it keeps of a silo is the silo's own number, nor near it."""
    place.put_masks_on(place.names)
    place.push(place.names, is_last=False)
    for name, delivery in place.rounds._deliveries.items():
        delta, tokens = DELTAS[name]
        bare = MASKED.encode(np.full(8, delta, np.float32), tokens / LIMIT).view(np.int32)
        distance = np.abs(delivery._values.view(np.int32).astype(np.int64) - bare.astype(np.int64))
        assert np.median(distance) > 2**24


def test_a_silo_that_dies_between_masking_and_unmasking_stays_in_the_sum(place):
    *others, last = place.names
    place.put_masks_on(place.names)
    place.push(place.names)
    place.rounds.gone(last)
    assert place.close("".join(others)) == ["done"] * len(others)
    np.testing.assert_allclose(place.silos["a"].weights(1), expected(place.names), rtol=0, atol=quanta(place.names))


@pytest.mark.parametrize("how", ["gone", "half", "anew"])
def test_a_silo_that_dies_before_its_delta_is_there_is_left_out_and_its_masks_are_taken_off(place, how):
    *others, last = place.names
    rest = "".join(others)
    place.put_masks_on(place.names)
    place.push(rest)
    if how == "half":
        place.push(last, is_last=False)
    back = place.silo(last, 0, life="2") if how == "anew" else None
    if back is None:
        place.rounds.gone(last)
    else:
        back.begin(1)
        assert back.go_on() == OUT, "its secrets are lost"
        back.talk.masks = place.silos[last].talk.masks
        back.push_masked(1, 2.0, 10, LIMIT)
    assert place.close(rest) == ["done"] * len(rest)
    np.testing.assert_allclose(place.silos["a"].weights(1), expected(rest), rtol=0, atol=quanta(rest))
    assert place.told("round")[0]["missing"] == [last]
    if back is not None:
        assert back.verdict(1) == ("late", 1)


def test_when_too_many_die_the_round_changes_nothing(place):
    place.put_masks_on(place.names)
    place.push("a")
    for name in place.names[1:]:
        place.rounds.gone(name)
    assert place.close("a") == ["late"]
    assert place.silos["a"].weights(1) == [1.0] * 8
    assert any("too few silos were left to take the masks off" in data["message"] for data in place.told("incident"))


def test_a_delta_that_fixed_point_cannot_hold_is_rejected_by_its_own_silo(place):
    *others, last = place.names
    rest = "".join(others)
    place.put_masks_on(place.names)
    place.push(rest)
    fields = {"round": 1, "tokens": 10, "is_last": True, "spans": [], "unusable": "element 0 is nan"}
    place.silos[last].connection.ask("push", fields)
    assert place.close(place.names) == ["done"] * len(rest) + ["rejected"]
    np.testing.assert_allclose(place.silos["a"].weights(1), expected(rest), rtol=0, atol=quanta(rest))


def test_who_comes_after_the_keys_is_in_the_next_round(place):
    *others, last = place.names
    if len(others) < 3:
        return place.server.close()
    rest = "".join(others)
    place.rounds.gone(last)
    place.put_masks_on(rest)
    late = place.silo(last, 0, life="2")
    late.begin(1)
    assert late.go_on() == OUT
    place.push(rest)
    assert place.close(rest) == ["done"] * 3
    assert late.verdict(1) == ("late", 1)
    place.silos[last] = late
    place.put_masks_on(place.names, 2)
    place.push(place.names, 2)
    assert place.close(place.names, 2) == ["done"] * 4


def test_a_silo_that_begins_anew_while_keys_are_gathered_takes_part_with_other_keys(place):
    """Its first keys are void: nobody shares a mask with them."""
    first = place.names[0]
    old = place.silos[first]
    old.begin(1)
    assert old.go_on() == WAIT
    place.silos[first] = place.silo(first, 0, life="2")
    place.put_masks_on(place.names)
    assert old.go_on() == OUT
    place.push(place.names)
    assert place.close(place.names) == ["done"] * len(place.names)
    weights = place.silos[first].weights(1)
    np.testing.assert_allclose(weights, expected(place.names), rtol=0, atol=quanta(place.names))


def test_shares_that_somebody_would_miss_are_refused(tmp_path):
    place = Place(tmp_path, "abc")
    for name in "abc":
        place.silos[name].begin(1)
    assert [place.silos[name].go_on() for name in "abca"] == [WAIT] * 4
    with pytest.raises(Refused, match="silo a sealed shares for b, not for all others"):
        place.silos["a"].connection.ask("shares", {"round": 1, "sealed": {"b": "00"}})
    place.server.close()


def test_fewer_than_three_wait_and_that_is_told_once(tmp_path):
    place = Place(tmp_path, "abc")
    for name in "ab":
        place.silos[name].begin(1)
    assert [place.silos[name].go_on() for name in "ab"] == [WAIT] * 2
    place.rounds._masked.policy.deadline_s = 0.0
    assert [place.silos[name].go_on() for name in "abab"] == [WAIT] * 4
    (incident,) = place.told("incident")
    assert "round 1 waits for c: " in incident["message"] and "the quorum is 3" in incident["message"]
    place.server.close()


def test_a_run_without_it_has_no_such_questions(tmp_path):
    terms = Terms({"a": 1.0, "b": 1.0}, load_strategy("fedavg"), load_codec("fp32"), 2, 600.0)
    server = OuterServer(Rounds(terms, OuterStore(Storage(str(tmp_path)), 4), lambda kind, data: None))
    silo = MaskedSilo(server.where, "a")
    silo.begin(1)
    with pytest.raises(Refused, match="has no secure aggregation"):
        silo.go_on()
    server.close()
