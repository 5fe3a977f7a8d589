"""Secure aggregation as a silo goes through it, round by round: its rank 0 talks, all ranks put masks on. Needs the extra `silos`.

Secrets are fresh in each round and in memory only. An attempt that ends between its keys and the end of the round loses them: the silo is then out of
this round, unless its whole masked delta was there already, whose masks the others can take off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from zerofleet.trainer.config import MaskingConfig
from zerofleet.trainer.errors import ZerofleetError
from zerofleet.trainer.silos.chunks import Chunk
from zerofleet.trainer.silos.fixed_point import MASKED, Float32
from zerofleet.trainer.silos.masking import Masks, PublicKeys, SiloSession, session_of
from zerofleet.trainer.silos.wire import Connection

WAIT, GO, OUT = 0, 1, 2
"""What `Conversation.go_on` came to: not yet; masks are there; the round goes on without this silo."""


@dataclass(frozen=True)
class Wrapping:
    """What becomes of a chunk on its way out, in one round."""

    masks: Masks
    share: float
    """This silo's tokens x weight by what those of all silos cannot exceed together."""

    def put_on(self, values: Float32, chunk: Chunk) -> bytes:
        """Raises UnusableDelta for values that fixed point cannot hold."""
        return self.masks.put_on(chunk, MASKED.encode(values, self.share)).tobytes()


class Conversation:
    """Rank 0's, of one round. Every method may be called again after a connection broke."""

    def __init__(self, connection: Connection, silo: str, number: int) -> None:
        self._connection, self._number = connection, number
        self._session = SiloSession(silo, session_of(number))
        self._keys: dict[str, PublicKeys] = {}
        self._sealed: dict[str, str] = {}
        self.masks: Masks | None = None
        """Once it came to GO."""

    def go_on(self) -> int:
        """One question. Raises OSError, and MaskingFailed where somebody cheats."""
        if not self._sealed:
            mine = {name: value.hex() for name, value in vars(self._session.public_keys).items() if name != "silo"}
            answer = self._ask("keys", keys=mine)
            if answer["state"] == "go":
                self._share(answer["keys"])
            return OUT if answer["state"] == "out" else WAIT
        answer = self._ask("shares", sealed=self._sealed)
        if answer["state"] != "go":
            return OUT if answer["state"] == "out" else WAIT
        self._session.accept_shares({name: bytes.fromhex(text) for name, text in answer["sealed"].items()})
        self.masks = self._session.masks
        return GO

    def reveal(self, survivors: list[str]) -> None:
        """Raises OSError, and MaskingFailed for survivors by whom a delta would be given away."""
        revealed = self._session.reveal(frozenset(survivors))
        seeds = {name: value.hex() for name, value in revealed.seeds.items()}
        mask_keys = {name: value.hex() for name, value in revealed.mask_keys.items()}
        self._ask("reveal", seeds=seeds, mask_keys=mask_keys)

    def _share(self, keys: dict[str, dict[str, str]]) -> None:
        self._keys = {
            name: PublicKeys(name, **{kind: bytes.fromhex(value) for kind, value in found.items()})
            for name, found in keys.items()
        }
        self._sealed = {name: text.hex() for name, text in self._session.share_secrets(self._keys).items()}

    def _ask(self, op: str, **fields: Any) -> dict[str, Any]:
        return self._connection.ask(op, {"round": self._number, **fields})


def wrapping_of(
    conversation: Conversation | None, config: MaskingConfig, tokens: int, device: torch.device
) -> Wrapping:
    """On every rank, what rank 0's conversation came to. Collective."""
    found = [conversation.masks if conversation is not None else None]
    dist.broadcast_object_list(found, src=0, device=device)
    if (masks := found[0]) is None:
        raise ZerofleetError("rank 0 has no masks: secure aggregation cannot go on")
    return Wrapping(masks, tokens * config.weight / config.weight_limit)
