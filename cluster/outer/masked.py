"""A round of secure aggregation as the outer server sees it: what it passes on between silos, and the sum that it is left with.

It learns public keys, sealed shares that it cannot read, masked deltas, and then the shares that take the masks off the sum over the survivors;
trainer/silos/masking.py has the protocol. Nothing of it is durable: a new driver's silos begin the round anew, with other keys.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from zerofleet.cluster.outer.delivery import Delivery
from zerofleet.cluster.outer.state import Float32
from zerofleet.cluster.outer.step import Means
from zerofleet.cluster.policy.masking import Masking
from zerofleet.trainer.errors import ZerofleetError
from zerofleet.trainer.silos.chunks import Chunk, chunks_of
from zerofleet.trainer.silos.fixed_point import MASKED
from zerofleet.trainer.silos.masking import MIN_SILOS, PublicKeys, Revealed, session_of
from zerofleet.trainer.silos.unmasking import Unmasker


class MaskedRound:
    """Of one round."""

    def __init__(self, number: int, quorum: int, deadline_s: float, weight_limit: float) -> None:
        """`weight_limit`: what the weights of all silos in a round cannot exceed together."""
        self.policy = Masking(max(quorum, MIN_SILOS), quorum, deadline_s)
        self._number, self._weight_limit = number, weight_limit
        self._keys: dict[str, PublicKeys] = {}
        self._lives: dict[str, str] = {}
        """By silo, the attempt that holds the secrets behind its keys."""
        self._sealed: dict[str, dict[str, str]] = {}
        """By sender and receiver."""
        self._revealed: dict[str, Revealed] = {}

    def take(self, silo: str, life: str, question: Mapping[str, Any], now: float) -> None:
        """`keys`, `shares` or `reveal`. What repeats an answer, or comes too late for its phase, changes nothing. Raises ZerofleetError for shares
        that somebody would miss."""
        match question["op"]:
            case "keys":
                if silo not in self.policy.answered["keys"] and self.policy.answer("keys", silo, now):
                    found = {name: bytes.fromhex(value) for name, value in question["keys"].items()}
                    self._keys[silo], self._lives[silo] = PublicKeys(silo, **found), life
            case "shares":
                if question["sealed"].keys() != self._keys_of_all().keys() - {silo}:
                    raise ZerofleetError(
                        f"silo {silo} sealed shares for {', '.join(sorted(question['sealed']))}, not for all others"
                    )
                if self._is_same(silo, life) and self.policy.answer("shares", silo, now):
                    self._sealed[silo] = dict(question["sealed"])
            case "reveal":
                if self._is_same(silo, life) and self.policy.answer("reveal", silo, now):
                    self._revealed[silo] = Revealed(silo, _bytes(question["seeds"]), _bytes(question["mask_keys"]))

    def reply(self, silo: str, life: str, op: str) -> dict[str, Any]:
        """`wait`; `go` with what the others sent; `out`: the round goes on without this silo."""
        answered = self.policy.answered
        match op:
            case "keys":
                if self.policy.phase == "keys":
                    return {"state": "wait"}
                if silo in answered["keys"] and self._is_same(silo, life):
                    return {"state": "go", "keys": {name: _hex(keys) for name, keys in self._keys_of_all().items()}}
            case "shares":
                if self.policy.phase == "shares":
                    return {"state": "wait"}
                if silo in answered.get("shares", ()) and self._is_same(silo, life) and "deltas" in answered:
                    sealed = {sender: self._sealed[sender][silo] for sender in answered["shares"] - {silo}}
                    return {"state": "go", "sealed": sealed}
            case "reveal":
                return {}
        return {"state": "out"}

    def may_deliver(self, silo: str, life: str) -> bool:
        """Whether its masked delta can be part of the sum."""
        is_asked = self.policy.phase == "deltas" and silo in self.policy.answered["shares"]
        return is_asked and self._is_same(silo, life)

    def survivors_for(self, silo: str, life: str) -> list[str] | None:
        """Whose masks this silo is to help to take off; None where it is not asked, or has answered."""
        is_asked = (
            self.policy.phase == "reveal" and silo in self.policy.answered["shares"] and self._is_same(silo, life)
        )
        return sorted(self.survivors) if is_asked and silo not in self._revealed else None

    @property
    def survivors(self) -> Collection[str]:
        return self.policy.answered["deltas"]

    def means(
        self, sizes: Mapping[str, int], deliveries: Mapping[str, Delivery], weights: Mapping[str, float]
    ) -> Means:
        """The weighted mean over the survivors. Raises MaskingFailed, before the first chunk, where shares are wrong."""
        unmasker = Unmasker(
            session_of(self._number),
            self._keys_of_all(),
            self.policy.answered["shares"],
            list(deliveries),
            self._revealed.values(),
        )
        total_share = math.fsum(weights.values()) / self._weight_limit
        return Means(chunks_of(sizes), lambda chunk: _mean(unmasker, chunk, deliveries, total_share))

    def _keys_of_all(self) -> dict[str, PublicKeys]:
        return {name: self._keys[name] for name in sorted(self.policy.answered["keys"])}

    def _is_same(self, silo: str, life: str) -> bool:
        return self._lives.get(silo) == life


def _mean(unmasker: Unmasker, chunk: Chunk, deliveries: Mapping[str, Delivery], total_share: float) -> Float32:
    total = np.zeros(chunk.count, MASKED.dtype)
    for delivery in deliveries.values():
        total += delivery.read(chunk)
    return MASKED.decode_mean(unmasker.unmask(chunk, total), total_share)


def _hex(keys: PublicKeys) -> dict[str, str]:
    return {name: value.hex() for name, value in vars(keys).items() if name != "silo"}


def _bytes(values: Mapping[str, str]) -> dict[str, bytes]:
    return {name: bytes.fromhex(value) for name, value in values.items()}
