"""Secure aggregation, the aggregator's side: what takes the masks off the sum over the silos that survived, and off nothing less."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from zerofleet.trainer.silos.chunks import Chunk
from zerofleet.trainer.silos.errors import MaskingFailed
from zerofleet.trainer.silos.fixed_point import Words
from zerofleet.trainer.silos.masking import PublicKeys, Revealed, digest_of_seed, mask_words, pair_key, threshold_of
from zerofleet.trainer.silos.secret_sharing import SHARE_BYTES, combine


class Unmasker:
    """Of one round: `keys` of all that took part, `sharers` whose shares were passed on, `survivors` whose whole masked delta is in the sum."""

    def __init__(
        self,
        session: str,
        keys: Mapping[str, PublicKeys],
        sharers: Collection[str],
        survivors: Collection[str],
        revealed: Iterable[Revealed],
    ) -> None:
        """Raises MaskingFailed where fewer silos than the threshold have revealed their shares, and where shares are wrong."""
        self._session, self._keys, self._survivors = session, keys, sorted(survivors)
        indices = {name: index for index, name in enumerate(sorted(keys), start=1)}
        answers = {answer.silo: answer for answer in revealed if answer.silo in sharers}
        threshold = threshold_of(len(keys))
        if len(answers) < threshold:
            raise MaskingFailed(
                f"{len(answers)} of {len(keys)} silos revealed their shares, and {threshold} are needed to take the masks off: this round has no sum"
            )
        # Exactly as many as are needed: interpolation wants no more.
        self._answers = {indices[name]: answers[name] for name in sorted(answers)[:threshold]}
        self._seeds = {name: self._seed(name) for name in self._survivors}
        self._pairs = self._open_pairs(sorted(set(sharers) - set(survivors)))

    def unmask(self, chunk: Chunk, total: Words) -> Words:
        """The sum [chunk.count] of the survivors' fixed-point deltas, from `total`, the sum of their masked ones. Chunk by chunk, in any order."""
        plain = total
        for name in self._survivors:
            plain = plain - mask_words(self._seeds[name], chunk, total.dtype)
        for (name, dropped), key in self._pairs.items():
            mask = mask_words(key, chunk, total.dtype)
            # As `name` put it on, the other way round.
            plain = plain - mask if name < dropped else plain + mask
        return plain

    def _open_pairs(self, dropped: Collection[str]) -> dict[tuple[str, str], bytes]:
        """Keys of the masks that each survivor shares with each silo that dropped out."""
        pairs = {}
        for gone in dropped:
            mask_key = self._mask_key(gone)
            for name in self._survivors:
                pairs[name, gone] = pair_key(mask_key, self._keys[name], self._session, gone)
        return pairs

    def _seed(self, name: str) -> bytes:
        seed = self._combined(name, {index: answer.seeds for index, answer in self._answers.items()})
        if digest_of_seed(seed) != self._keys[name].seed_digest:
            raise MaskingFailed(
                f"the shares of silo {name}'s own mask do not fit together: somebody revealed a wrong one"
            )
        return seed

    def _mask_key(self, name: str) -> X25519PrivateKey:
        key = X25519PrivateKey.from_private_bytes(
            self._combined(name, {index: answer.mask_keys for index, answer in self._answers.items()})
        )
        if key.public_key().public_bytes_raw() != self._keys[name].mask_key:
            raise MaskingFailed(
                f"the shares of silo {name}'s mask key do not fit together: somebody revealed a wrong one"
            )
        return key

    def _combined(self, name: str, revealed: Mapping[int, Mapping[str, bytes]]) -> bytes:
        """The secret of silo `name`, from what was revealed by index of the share."""
        for index, shares in revealed.items():
            if len(shares.get(name, b"")) != SHARE_BYTES:
                raise MaskingFailed(
                    f"silo {self._answers[index].silo} did not reveal the share of silo {name} that was asked for"
                )
        return combine({index: shares[name] for index, shares in revealed.items()})
