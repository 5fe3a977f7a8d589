"""Secure aggregation, the silo's side: a delta leaves under masks that only the sum over silos is rid of.

The protocol is that of Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017, figure 4), without
its signatures. Every two silos agree on a mask (X25519); the one whose name comes first adds it, the other takes it away. Each adds one of its own,
so that a delta which comes after its silo was given up stays masked. The secrets behind both kinds of masks lie in Shamir shares with the
other silos. A round:

1. each silo `public_keys`                      -> all silos
2. each silo `share_secrets(keys of all)`       -> to each other silo its sealed shares (the aggregator cannot read them)
3. each silo `accept_shares(those sent to it)`, then `masks.put_on` chunk by chunk -> the aggregator
4. the aggregator says who survived; each silo `reveal(survivors)` -> the aggregator, which takes the masks off the sum (unmasking.py)

The threshold is n - floor(n / 3): a third of the silos may drop out at any point. A silo reveals of each other one only one of the two secrets, and answers
one list of survivors per round. As two lists of answers of threshold silos overlap, an aggregator that tells silos different things does not get both secrets of anybody, not
even together with fewer than 2 x threshold - n silos. What it is trusted with: to pass on the public keys unchanged. Nothing here can tell a silo
that sends nonsense: under masks no delta can be looked at.

Key material is fresh in each round; a session is one round.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from zerofleet.trainer.silos.chunks import Chunk
from zerofleet.trainer.silos.errors import MaskingFailed
from zerofleet.trainer.silos.fixed_point import Words
from zerofleet.trainer.silos.keystream import KEY_BYTES, derived, keystream
from zerofleet.trainer.silos.secret_sharing import SHARE_BYTES, split

MIN_SILOS = 3
_NONCE = bytes(12)
"""Constant: each sealing key is derived for one message."""


@dataclass(frozen=True)
class PublicKeys:
    """What a silo tells everybody at the start of a round (32 bytes each)."""

    silo: str
    sealing_key: bytes
    """X25519: under which shares are sealed on their way to this silo."""
    mask_key: bytes
    """X25519: from which masks with other silos are agreed upon."""
    seed_digest: bytes
    """SHA-256 of the seed of the silo's own mask, by which a wrong reconstruction is noticed."""


@dataclass(frozen=True)
class Revealed:
    """What a silo reveals when the survivors are known: its shares of secrets of other silos and of itself."""

    silo: str
    seeds: Mapping[str, bytes] = field(repr=False)
    """Of the seeds of survivors' own masks."""
    mask_keys: Mapping[str, bytes] = field(repr=False)
    """Of the private mask keys of silos that dropped out."""


def session_of(round_number: int) -> str:
    """What the keys of a round are derived for."""
    return f"round {round_number}"


def threshold_of(num_silos: int) -> int:
    """Shares that give a secret back: all but a third of the silos."""
    return num_silos - num_silos // 3


def digest_of_seed(seed: bytes) -> bytes:
    return hashlib.sha256(b"zerofleet.silos seed" + seed).digest()


def pair_key(mine: X25519PrivateKey, theirs: PublicKeys, session: str, silo: str) -> bytes:
    """The key of the mask that `silo` and `theirs.silo` share, the same from either side."""
    return derived(_agreed(mine, theirs.mask_key), session, "pair", *sorted((silo, theirs.silo)))


def mask_words(key: bytes, chunk: Chunk, dtype: np.dtype[Any]) -> Words:
    """A key's mask [chunk.count]; that of an element depends on its place in the parameter only."""
    size = dtype.itemsize
    return np.frombuffer(keystream(key, size * chunk.start, size * chunk.count, "mask", chunk.name), dtype)


@dataclass(frozen=True)
class Masks:
    """All masks of a silo in one round: what its ranks need of its session, and nobody else may have."""

    silo: str
    seed: bytes = field(repr=False)
    """Of its own mask."""
    pairs: Mapping[str, bytes] = field(repr=False)
    """Keys of the masks that it shares with other silos, by their names."""

    def put_on(self, chunk: Chunk, words: Words) -> Words:
        """`words` [chunk.count] of a fixed-point delta under all masks, modulo 2^bits. The same words may be sent again; other ones under the same
        masks would give away their difference."""
        masked = words + mask_words(self.seed, chunk, words.dtype)
        for name, key in self.pairs.items():
            mask = mask_words(key, chunk, words.dtype)
            masked = masked + mask if self.silo < name else masked - mask
        return masked


class SiloSession:
    """One silo in one round of secure aggregation. `session` names run and round, the same for all."""

    def __init__(self, silo: str, session: str) -> None:
        self.silo, self.session = silo, session
        self._sealing_key, self._mask_key = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        self._seed = os.urandom(KEY_BYTES)
        self._keys: Mapping[str, PublicKeys] = {}
        self._shares: dict[str, bytes] = {}
        self._survivors: frozenset[str] | None = None

    @property
    def public_keys(self) -> PublicKeys:
        return PublicKeys(
            self.silo,
            self._sealing_key.public_key().public_bytes_raw(),
            self._mask_key.public_key().public_bytes_raw(),
            digest_of_seed(self._seed),
        )

    def share_secrets(self, keys: Mapping[str, PublicKeys]) -> dict[str, bytes]:
        """Sealed shares of this silo's secrets, by the silo that they are for, given the public keys of all that take part, its own among them.

        Raises MaskingFailed for fewer than MIN_SILOS, keys that are not this silo's own under its name, and on a second call.
        """
        if len(keys) < MIN_SILOS:
            raise MaskingFailed(
                f"{len(keys)} silos take part in secure aggregation: with fewer than {MIN_SILOS} the sum gives deltas away"
            )
        if keys.get(self.silo) != self.public_keys or any(name != key.silo for name, key in keys.items()):
            raise MaskingFailed(f"silo {self.silo} was told keys that do not belong to the names they came under")
        if self._keys:
            raise MaskingFailed(f"silo {self.silo} was asked for its shares twice in one round")
        self._keys = dict(keys)
        names = sorted(keys)
        threshold = threshold_of(len(names))
        seeds = split(self._seed, threshold, len(names))
        mask_keys = split(self._mask_key.private_bytes_raw(), threshold, len(names))
        sealed = {}
        for name, seed, mask_key in zip(names, seeds, mask_keys, strict=True):
            if name == self.silo:
                self._shares[name] = seed + mask_key
            else:
                sealed[name] = self._cipher(name, self.silo, name).encrypt(_NONCE, seed + mask_key, None)
        return sealed

    def accept_shares(self, sealed: Mapping[str, bytes]) -> None:
        """Opens what the other silos have sealed for this one, by sender. Whoever is missing dropped out before it shared its secrets, and gets no
        mask: all silos must be told the same senders. Raises MaskingFailed for shares that were tampered with, and for too few."""
        if len(self._shares) != 1:
            raise MaskingFailed(f"silo {self.silo} got its shares before it gave its own, or twice in one round")
        opened = {}
        for name, text in sealed.items():
            if name not in self._keys or name == self.silo:
                raise MaskingFailed(f"silo {self.silo} got shares of {name}, which does not take part")
            try:
                opened[name] = self._cipher(name, name, self.silo).decrypt(_NONCE, text, None)
            except InvalidTag:
                raise MaskingFailed(
                    f"the shares that silo {name} sealed for {self.silo} were changed on the way"
                ) from None
            if len(opened[name]) != 2 * SHARE_BYTES:
                raise MaskingFailed(
                    f"silo {name} sealed {len(opened[name])} bytes for {self.silo}, which are no shares"
                )
        if 1 + len(opened) < threshold_of(len(self._keys)):
            raise MaskingFailed(
                f"only {1 + len(opened)} of {len(self._keys)} silos shared their secrets, and {threshold_of(len(self._keys))} are needed"
            )
        self._shares.update(opened)

    @property
    def masks(self) -> Masks:
        """Once shares were accepted."""
        assert len(self._shares) > 1, "shares come first"
        others = sorted(set(self._shares) - {self.silo})
        pairs = {name: pair_key(self._mask_key, self._keys[name], self.session, self.silo) for name in others}
        return Masks(self.silo, self._seed, pairs)

    def reveal(self, survivors: frozenset[str]) -> Revealed:
        """The shares that take the masks off the sum over `survivors`: of these their own masks' seeds, of the others that shared secrets their mask
        keys. Raises MaskingFailed for survivors that are too few or never shared, and for other survivors than the first time."""
        threshold = threshold_of(len(self._keys))
        if len(survivors) < threshold or not survivors <= set(self._shares):
            raise MaskingFailed(
                f"silo {self.silo} does not reveal shares for the survivors {', '.join(sorted(survivors))}: at least {threshold} of "
                f"{', '.join(sorted(self._shares))} are needed, or the sum would give deltas away"
            )
        if self._survivors not in (None, survivors):
            raise MaskingFailed(
                f"silo {self.silo} was told two different lists of survivors in one round: together they would give deltas away"
            )
        self._survivors = survivors
        seeds = {name: share[:SHARE_BYTES] for name, share in self._shares.items() if name in survivors}
        mask_keys = {name: share[SHARE_BYTES:] for name, share in self._shares.items() if name not in survivors}
        return Revealed(self.silo, seeds, mask_keys)

    def _cipher(self, other: str, sender: str, receiver: str) -> ChaCha20Poly1305:
        agreed = _agreed(self._sealing_key, self._keys[other].sealing_key)
        return ChaCha20Poly1305(derived(agreed, self.session, "shares", sender, receiver))


def _agreed(mine: X25519PrivateKey, theirs: bytes) -> bytes:
    try:
        return mine.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError as error:  # of another length, or of low order
        raise MaskingFailed(f"a public key was not made by X25519: {error}") from error
