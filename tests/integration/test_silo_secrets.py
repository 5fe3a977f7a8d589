"""Silos as ranks that keep their deltas private: clipping and noise, masks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("Crypto", reason="the extra `silos` is not installed")

from tests.support.ranks import Plan
from tests.support.silos import INTERVAL, Silos
from zerofleet.cluster.outer.state import OuterStore
from zerofleet.trainer.silos.chunks import Chunk
from zerofleet.trainer.silos.fixed_point import MASKED
from zerofleet.trainer.silos.masked import WAIT, Conversation, Wrapping
from zerofleet.trainer.silos.privacy import epsilon_of
from zerofleet.trainer.silos.wire import Connection
from zerofleet.trainer.storage import Storage

pytestmark = [pytest.mark.integration, pytest.mark.further, pytest.mark.timeout(500)]


PRIVACY = {"clip_norm": 0.01, "noise_multiplier": 0.5, "delta": 1e-6}


class PrivateSilos(Silos):
    """Two, whose secrets may be given."""

    def __init__(self, folder, corpus, cache, secret: bytes | None = None) -> None:
        given = {}
        if secret is not None:
            folder.mkdir()
            (folder / "secret").write_bytes(secret)
            given = {"key_file": str(folder / "secret")}
        super().__init__(folder, corpus, cache, strategy="fedavg", codec="int8", silo={"privacy": PRIVACY, **given})

    def releases(self, name: str) -> list[str]:
        return Storage(str(self.folder / name / "runs/tiny")).list("releases")


def test_a_private_silo_clips_adds_noise_and_says_what_it_has_spent(tmp_path, tiny_corpus, tiny_cache):
    silos = PrivateSilos(tmp_path, tiny_corpus, tiny_cache)
    found = silos.all(a=(2, 2), b=(1, 1))
    assert not any(outcome.errors for outcome in found.values())
    for outcome in found.values():
        spent = [event.data["privacy"] for event in outcome.of("outer")]
        assert [told["releases"] for told in spent] == [0, 1, 2, 3]
        assert [told["epsilon"] for told in spent] == [epsilon_of(0.5, rounds, 1e-6) for rounds in range(4)]
    store = OuterStore(Storage(str(tmp_path)), 4)
    before, after = store.weights_of(0), store.weights_of(1)
    change = np.concatenate([before[name] - after[name] for name in before]).astype(np.float64)
    # The mean of two deltas of a norm of 0.01 at most, under independent noise of 0.005 each; int8 adds a little.
    assert np.std(change) == pytest.approx(0.005 / 2**0.5, rel=0.05)
    silos.close()


def test_a_private_silo_that_is_killed_sends_the_same_message_again(tmp_path, tiny_corpus, tiny_cache):
    """The noise with it, though it is nobody's to foretell: silos with other secrets get other weights."""
    found = {}
    for run, secret, kill in (("whole", b"s" * 32, None), ("killed", b"s" * 32, (0, 5)), ("other", b"t" * 32, None)):
        silos = PrivateSilos(tmp_path / run, tiny_corpus, tiny_cache, secret)
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(silos.run, "b", 1, 1)
            first = silos.run("a", 2, 1, Plan(kill_at=kill))
            assert bool(first.errors or -9 in first.exit_codes) == (kill is not None)
            last = silos.run("a", 2, 1) if kill else first
        assert not last.errors and not other.result().errors
        found[run] = silos.masters("a"), silos.releases("a")
        assert last.of("outer")[-1].data["privacy"]["releases"] == 3
        silos.close()
    assert found["whole"] == found["killed"]
    assert not set(found["whole"][0].values()) & set(found["other"][0].values())


def test_without_a_file_the_secret_is_made_once_and_for_nobody_else(tmp_path, tiny_corpus, tiny_cache):
    silos = PrivateSilos(tmp_path, tiny_corpus, tiny_cache)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(silos.run, "b", 1, 1)
        first = silos.run("a", 1, 1, Plan(stop_after=3))
        path = tmp_path / "a/runs/tiny/secrets/silo-key"
        secret, mode = path.read_bytes(), path.stat().st_mode & 0o777
        second = silos.run("a", 1, 1)
        assert not first.errors and not second.errors and not other.result().errors
    assert path.read_bytes() == secret and len(secret) == 32 and mode == 0o600
    assert len(silos.releases("a")) == 3
    silos.close()


NAMES = "abc"
ROUND_TOKENS = 8 * 32 * INTERVAL
"""That a silo can have at most: sequences in a batch x their length x steps."""


class MaskedSilos(Silos):
    def __init__(self, folder, corpus, cache, names: str, quorum: int, **changes) -> None:
        limit = float(ROUND_TOKENS * len(names))
        silo = {"masking": {"weight": 1.0, "weight_limit": limit}, **changes}
        agreed = {"masked_limit": limit}
        super().__init__(folder, corpus, cache, names=names, quorum=quorum, strategy="fedavg", agreed=agreed, silo=silo)

    def weights(self, number: int) -> np.ndarray:
        found = OuterStore(Storage(str(self.folder)), 4).weights_of(number)
        return np.concatenate([found[name] for name in sorted(found)])


def test_under_masks_the_weights_are_those_without_to_the_quantum(tmp_path, tiny_corpus, tiny_cache):
    """Silos of several ranks and stages: each rank puts the masks of its own elements on."""
    shapes = {"a": (2, 2), "b": (1, 1), "c": (2, 3)}
    plain = Silos(tmp_path / "plain", tiny_corpus, tiny_cache, names=NAMES, quorum=3, strategy="fedavg")
    masked = MaskedSilos(tmp_path / "masked", tiny_corpus, tiny_cache, NAMES, quorum=3)
    for silos in (plain, masked):
        found = silos.all(**shapes)
        assert not any(outcome.errors for outcome in found.values()), {n: o.errors for n, o in found.items()}
        assert [sorted(data["tokens"]) for data in silos.told("round")] == [list(NAMES)] * 3
        silos.close()
    expected = OuterStore(Storage(str(tmp_path / "plain")), 4).weights_of(1)
    expected = np.concatenate([expected[name] for name in sorted(expected)])
    # Each silo's rounding to half a quantum, and fp32's own of weights below 2.
    np.testing.assert_allclose(masked.weights(1), expected, rtol=0, atol=len(NAMES) * MASKED.quantum + 2.0**-23)
    for first, second in zip(plain.told("round"), masked.told("round"), strict=True):
        assert first["delta_bytes"] == second["delta_bytes"], "words of 32 bits"


@pytest.mark.parametrize("when", ["before its delta", "after its delta"])
def test_a_silo_that_dies_between_masking_and_unmasking_does_not_end_the_round(tmp_path, tiny_corpus, tiny_cache, when):
    """Three silos of ranks, and a fourth without a model, which is gone then: its driver has ended."""
    silos = MaskedSilos(tmp_path, tiny_corpus, tiny_cache, "abcd", quorum=3)
    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(silos.all, a=(2, 1), b=(1, 2), c=(1, 1))
        sizes = _mask_one_delta(silos, with_delta=when == "after its delta")
        silos.rounds.gone("d")
        found = others.result()
    assert not any(outcome.errors for outcome in found.values()), {n: o.errors for n, o in found.items()}
    first, *rest = [sorted(data["tokens"]) for data in silos.told("round")]
    assert first == list("abcd" if when == "after its delta" else "abc") and rest == [list("abc")] * 2
    for outcome in found.values():
        assert [event.data["state"] for event in outcome.of("outer")] == ["joined", "done", "done", "done"]
    assert np.isfinite(silos.weights(3)).all() and sum(sizes.values()) == len(silos.weights(3))
    silos.close()


def _mask_one_delta(silos: MaskedSilos, with_delta: bool) -> dict[str, int]:
    """Silo d up to its masks, and its delta of zeros; sizes of the parameters."""
    connection = Connection(silos.server.where, {"silo": "d", "life": "1", "rank": 0, "world_size": 1})
    with silos.rounds._changed:  # another sends the initial weights
        assert silos.rounds._changed.wait_for(lambda: silos.rounds.number == 0, 150)
    connection.ask("open", {"round": -1})
    talk, state = Conversation(connection, "d", 1), WAIT
    while state == WAIT:
        state = talk.go_on()
    assert talk.masks is not None
    weights = OuterStore(Storage(str(silos.folder)), 4).weights_of(0)
    sizes = {name: len(values) for name, values in weights.items()}
    if with_delta:
        wrapping = Wrapping(talk.masks, 1 / len("abcd"))
        parts = [wrapping.put_on(np.zeros(size, np.float32), Chunk(name, 0, size)) for name, size in sizes.items()]
        spans = [(name, 0, size, len(part)) for (name, size), part in zip(sizes.items(), parts, strict=True)]
        fields = {"round": 1, "tokens": ROUND_TOKENS, "is_last": True, "spans": spans}
        connection.ask("push", fields, b"".join(parts))
    connection.close()
    return sizes
