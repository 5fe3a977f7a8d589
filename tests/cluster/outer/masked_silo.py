"""A silo without a model that takes part in secure aggregation. Needs the extra `silos`."""

from __future__ import annotations

import numpy as np

from tests.cluster.outer.silo import SIZES, Silo
from zerofleet.trainer.silos.chunks import Chunk
from zerofleet.trainer.silos.masked import Conversation, Wrapping


class MaskedSilo(Silo):
    """One that takes part in secure aggregation, as a rank 0 does."""

    def begin(self, number: int) -> None:
        self.talk = Conversation(self.connection, self.name, number)

    def go_on(self) -> int:
        return self.talk.go_on()

    def push_masked(self, number: int, delta: float, tokens: int, weight_limit: float, is_last: bool = True) -> None:
        assert self.talk.masks is not None
        wrapping, parts, spans = Wrapping(self.talk.masks, tokens / weight_limit), [], []
        for name, size in SIZES.items():
            parts.append(wrapping.put_on(np.full(size, delta, np.float32), Chunk(name, 0, size)))
            spans.append((name, 0, size, len(parts[-1])))
        fields = {"round": number, "tokens": tokens, "is_last": is_last, "spans": spans}
        self.connection.ask("push", fields, b"".join(parts))

    def help(self, number: int) -> str:
        """The state of a verdict; what it asks for is answered."""
        answer = self.connection.ask("verdict", {"round": number})
        if answer["state"] == "reveal":
            self.talk.reveal(answer["survivors"])
        return str(answer["state"])
