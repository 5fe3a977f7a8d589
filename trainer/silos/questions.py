"""What a rank of a silo asks the outer server, one question at a time; wire.py has the table. Each may be asked again after an OSError."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zerofleet.trainer.checkpoint.adapters import Slot
from zerofleet.trainer.silos.chunks import Chunk
from zerofleet.trainer.silos.outbox import Float32, Message
from zerofleet.trainer.silos.wire import Connection, cut

Pulled = list[tuple[Slot, Float32]]
"""Outer weights of all elements that a rank holds, by where they belong."""


@dataclass(frozen=True)
class Questions:
    """Over one connection, for one thread at a time. All raise OSError, and Refused when the server says no."""

    connection: Connection

    def start_of(self, newest: int) -> int:
        """The round to start from, for a silo whose state has this one."""
        return int(self.connection.ask("open", {"round": newest})["round"])

    def send(self, op: str, messages: Iterable[Message]) -> int:
        """0, when all are sent."""
        for fields, payload in messages:
            self.connection.ask(op, fields, payload)
        return 0

    def verdict(self, number: int) -> dict[str, Any]:
        """On a round."""
        return self.connection.ask("verdict", {"round": number})

    def pull(self, number: int, slots: Sequence[Slot]) -> Pulled:
        """A round's outer weights."""
        return [(slot, self._pull(number, slot)) for slot in slots]

    def _pull(self, number: int, slot: Slot) -> Float32:
        values = np.empty(slot.view.numel(), np.float32)
        for batch in cut([Chunk(slot.name, slot.start, len(values))]):
            answer = self.connection.ask("pull", {"round": number, "spans": batch})
            body = np.frombuffer(self.connection.payload(answer["body_bytes"]), np.float32)
            first = batch[0].start - slot.start
            values[first : first + len(body)] = body
        return values
