"""Secure aggregation: the sum is exact whoever drops out, and nothing less than the sum can be had."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("Crypto", reason="the extra `silos` is not installed")

from zerofleet.trainer.silos.aggregation import MAX_MAGNITUDE, ChunkSum
from zerofleet.trainer.silos.chunks import Chunk
from zerofleet.trainer.silos.errors import MaskingFailed
from zerofleet.trainer.silos.fixed_point import FixedPoint
from zerofleet.trainer.silos.masking import MIN_SILOS, SiloSession, mask_words, threshold_of
from zerofleet.trainer.silos.secret_sharing import combine, split
from zerofleet.trainer.silos.unmasking import Unmasker

CHUNKS = [Chunk("a", 0, 50), Chunk("a", 50, 17)]
FIXED = FixedPoint(32, 1.0)


class Round:
    """All silos of one round up to where they have each other's shares; `shy` ones drop out before they share."""

    def __init__(self, num_silos: int, shy: frozenset[str] = frozenset(), session: str = "run/7") -> None:
        self.session = session
        self.silos = {name: SiloSession(name, session) for name in (f"silo{number}" for number in range(num_silos))}
        self.keys = {name: silo.public_keys for name, silo in self.silos.items()}
        self.sharers = sorted(set(self.silos) - shy)
        self.sealed = {name: self.silos[name].share_secrets(self.keys) for name in self.sharers}
        for name in self.sharers:
            self.silos[name].accept_shares(self.sealed_for(name))

    def sealed_for(self, name: str) -> dict[str, bytes]:
        return {sender: self.sealed[sender][name] for sender in self.sharers if sender != name}

    def words(self, name: str, chunk: Chunk) -> np.ndarray:
        draw = np.random.default_rng([int(name[4:]), chunk.start])
        return FIXED.encode(draw.uniform(-1, 1, chunk.count).astype(np.float32), 1 / len(self.silos))

    def total(self, names, chunk: Chunk, is_masked: bool) -> np.ndarray:
        total = np.zeros(chunk.count, FIXED.dtype)
        for name in names:
            words = self.words(name, chunk)
            total += self.silos[name].masks.put_on(chunk, words) if is_masked else words
        return total

    def unmasker(self, survivors, answering) -> Unmasker:
        revealed = [self.silos[name].reveal(frozenset(survivors)) for name in answering]
        return Unmasker(self.session, self.keys, self.sharers, survivors, revealed)


def test_a_third_of_the_silos_may_drop():
    assert [threshold_of(n) for n in (3, 4, 5, 6, 7, 9, 64)] == [2, 3, 4, 4, 5, 6, 43]


@pytest.mark.parametrize("num_silos", [3, 4, 6, 7])
@pytest.mark.parametrize("when", ["never", "before sharing", "before masking", "after masking"])
def test_the_sum_is_exact_whoever_drops_out(num_silos, when):
    dropping = frozenset(f"silo{number}" for number in range(1, 1 + num_silos // 3)) if when != "never" else frozenset()
    a_round = Round(num_silos, shy=dropping if when == "before sharing" else frozenset())
    answering = sorted(set(a_round.silos) - dropping)
    survivors = sorted(a_round.silos) if when == "after masking" else answering
    unmasker = a_round.unmasker(survivors, answering)
    for chunk in reversed(CHUNKS):
        total = unmasker.unmask(chunk, a_round.total(survivors, chunk, is_masked=True))
        np.testing.assert_array_equal(total, a_round.total(survivors, chunk, is_masked=False))


def test_with_64_bits_the_mean_is_that_without_masks():
    a_round, fixed, chunk = Round(3), FixedPoint(64, MAX_MAGNITUDE), CHUNKS[0]
    draw, tokens = np.random.default_rng(0), {"silo0": 100, "silo1": 250, "silo2": 50}
    masked, plain = np.zeros(50, fixed.dtype), ChunkSum(50, weight_limit=1000)
    for name, weight in tokens.items():
        values = draw.standard_normal(50).astype(np.float32)
        masked += a_round.silos[name].masks.put_on(chunk, fixed.encode(values, weight / 1000))
        plain.add({name: (weight, values)})
    total = a_round.unmasker(a_round.silos, a_round.silos).unmask(chunk, masked)
    np.testing.assert_allclose(fixed.decode_mean(total, 0.4), plain.mean(), rtol=2**-23, atol=1e-12)


def test_a_masked_delta_is_uniform():
    """What the aggregator sees of a delta of nothing but zeros: chi-square of its bytes, and no likeness to the next round's."""
    chunk, zeros = Chunk("a", 0, 40_000), np.zeros(40_000, np.uint32)
    seen = [Round(3, session=f"run/{number}").silos["silo1"].masks.put_on(chunk, zeros) for number in range(2)]
    for words in seen:
        counts = np.bincount(words.view(np.uint8), minlength=256)
        chi_square = ((counts - 625) ** 2 / 625).sum()
        assert abs(chi_square - 255) < 6 * (2 * 255) ** 0.5
    assert (seen[0] == seen[1]).mean() < 1e-3


def test_each_kind_of_mask_hides_on_its_own():
    """Neither the pairs' masks alone (a late silo's come off with its mask key) nor its own alone leave the delta bare."""
    a_round, chunk = Round(3), CHUNKS[0]
    late = a_round.silos["silo2"].masks.put_on(chunk, a_round.words("silo2", chunk))
    # silo2 was given up, and its masked delta comes all the same: with everything that is revealed it stays masked.
    unmasker = a_round.unmasker(["silo0", "silo1"], ["silo0", "silo1"])
    others = a_round.total(["silo0", "silo1"], chunk, is_masked=True)
    bare = unmasker.unmask(chunk, others + late) - a_round.total(["silo0", "silo1"], chunk, is_masked=False)
    assert (bare == a_round.words("silo2", chunk)).mean() < 0.1


@pytest.mark.parametrize("num_silos", [3, 5, 6])
def test_fewer_than_the_threshold_cannot_unmask(num_silos):
    a_round = Round(num_silos)
    answering = sorted(a_round.silos)[: threshold_of(num_silos) - 1]
    with pytest.raises(
        MaskingFailed,
        match=f"{len(answering)} of {num_silos} silos revealed their shares, and {len(answering) + 1} are needed",
    ):
        a_round.unmasker(a_round.silos, answering)


def test_fewer_shares_than_the_threshold_tell_nothing():
    secret = bytes(range(32))
    shares = dict(enumerate(split(secret, 4, 6), start=1))
    for number, chosen in enumerate(itertools.combinations(shares, 4)):
        assert combine({index: shares[index] for index in chosen}) == secret, number
    for chosen in itertools.combinations(shares, 3):
        assert combine({index: shares[index] for index in chosen}) != secret
    # Any secret fits three shares: each other value of a fourth gives another secret.
    three = {index: shares[index] for index in (1, 2, 3)}
    guesses = {
        combine({**three, 4: bytes([guess % 256]) + shares[4][1:]}) for guess in range(shares[4][0], shares[4][0] + 8)
    }
    assert len(guesses) == 8 and secret in guesses


def test_the_aggregator_never_gets_both_secrets_of_a_silo():
    a_round = Round(6)
    everybody, five = frozenset(a_round.silos), frozenset(sorted(a_round.silos)[:5])
    silo = a_round.silos["silo0"]
    revealed = silo.reveal(five)
    assert set(revealed.seeds) == five and set(revealed.mask_keys) == {"silo5"}
    assert silo.reveal(five) == revealed  # the same question again is answered again
    with pytest.raises(MaskingFailed, match="two different lists of survivors"):
        silo.reveal(everybody)


@pytest.mark.parametrize("num_silos", range(3, 20))
def test_two_lists_of_answers_overlap_and_a_third_may_be_missing(num_silos):
    """Told differently, silos split into those who reveal the one secret and those who reveal the other: never enough of both."""
    assert 2 * threshold_of(num_silos) > num_silos and num_silos - num_silos // 3 >= threshold_of(num_silos)


@pytest.mark.parametrize(
    "survivors",
    [{"silo0"}, {"silo0", "silo1"}, {"silo0", "silo1", "silo2", "silo9"}, {"silo0", "silo1", "silo2", "silo3"}],
)
def test_survivors_that_are_too_few_or_never_shared_are_refused(survivors):
    a_round = Round(4, shy=frozenset({"silo3"}))
    with pytest.raises(MaskingFailed, match="silo0 does not reveal shares.*at least 3 of silo0, silo1, silo2"):
        a_round.silos["silo0"].reveal(frozenset(survivors))


def test_shares_that_were_tampered_with_are_named():
    a_round = Round.__new__(Round)
    a_round.silos = {f"silo{number}": SiloSession(f"silo{number}", "run/7") for number in range(3)}
    keys = {name: silo.public_keys for name, silo in a_round.silos.items()}
    sealed = {name: silo.share_secrets(keys) for name, silo in a_round.silos.items()}
    silo = a_round.silos["silo0"]
    changed = bytes([sealed["silo1"]["silo0"][0] ^ 1]) + sealed["silo1"]["silo0"][1:]
    for wrong in (changed, sealed["silo1"]["silo2"], b""):
        with pytest.raises(MaskingFailed, match="shares that silo silo1 sealed for silo0 were changed on the way"):
            silo.accept_shares({"silo1": wrong, "silo2": sealed["silo2"]["silo0"]})
    with pytest.raises(MaskingFailed, match="shares of stranger, which does not take part"):
        silo.accept_shares({"stranger": b""})
    with pytest.raises(MaskingFailed, match="only 1 of 3 silos shared their secrets, and 2 are needed"):
        silo.accept_shares({})
    silo.accept_shares({"silo1": sealed["silo1"]["silo0"], "silo2": sealed["silo2"]["silo0"]})
    with pytest.raises(MaskingFailed, match="twice in one round"):
        silo.accept_shares({"silo1": sealed["silo1"]["silo0"]})


def test_a_wrong_share_is_noticed_instead_of_a_wrong_sum():
    a_round = Round(4)
    survivors = ["silo0", "silo1", "silo2"]
    revealed = [a_round.silos[name].reveal(frozenset(survivors)) for name in survivors]
    seeds = replace(revealed[1], seeds={**revealed[1].seeds, "silo2": bytes(32)})
    keys = replace(revealed[1], mask_keys={"silo3": bytes(32)})
    withheld = replace(revealed[1], mask_keys={})
    cases = [
        (seeds, "shares of silo silo2's own mask do not fit together"),
        (keys, "shares of silo silo3's mask key do not fit together"),
        (withheld, "silo1 did not reveal the share of silo silo3"),
    ]
    for wrong, said in cases:
        with pytest.raises(MaskingFailed, match=said):
            Unmasker(a_round.session, a_round.keys, a_round.sharers, survivors, [revealed[0], wrong, revealed[2]])


def test_keys_under_wrong_names_and_too_few_silos_are_refused():
    silos = {name: SiloSession(name, "run/7") for name in ("a", "b", "c")}
    keys = {name: silo.public_keys for name, silo in silos.items()}
    with pytest.raises(MaskingFailed, match=f"2 silos take part.*fewer than {MIN_SILOS}"):
        silos["a"].share_secrets({name: keys[name] for name in ("a", "b")})
    for wrong in (
        {**keys, "a": keys["b"]},
        {**keys, "b": keys["c"]},
        {name: keys[name] for name in "bc"} | {"d": keys["a"]},
    ):
        with pytest.raises(MaskingFailed, match="keys that do not belong to the names"):
            silos["a"].share_secrets(wrong)
    silos["a"].share_secrets(keys)
    with pytest.raises(MaskingFailed, match="asked for its shares twice"):
        silos["a"].share_secrets(keys)


def test_parameters_places_and_rounds_have_masks_of_their_own():
    zeros, masks = np.zeros(50, np.uint32), Round(3).silos["silo0"].masks
    chunks = [Chunk("a", 0, 50), Chunk("a", 50, 50), Chunk("b", 0, 50)]
    seen = [masks.put_on(chunk, zeros) for chunk in chunks]
    seen.append(Round(3).silos["silo0"].masks.put_on(chunks[0], zeros))
    assert len({words.tobytes() for words in seen}) == 4


@given(st.integers(0, 60), st.integers(1, 40), st.sampled_from([np.uint16, np.uint32, np.uint64]))
def test_masks_do_not_depend_on_where_a_parameter_is_cut(start, count, dtype):
    """Silos of different world sizes cut differently."""
    whole = mask_words(bytes(32), Chunk("a", 0, 100), np.dtype(dtype))
    part = mask_words(bytes(32), Chunk("a", start, count), np.dtype(dtype))
    np.testing.assert_array_equal(part, whole[start : start + count])
