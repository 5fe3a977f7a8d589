"""What a rank sends of its silo's delta, and what it keeps of it: one parameter, all of it this rank's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from zerofleet.cluster.outer.rounds import Rounds
from zerofleet.cluster.outer.state import OuterState, OuterStore
from zerofleet.cluster.outer.terms import Terms
from zerofleet.trainer.checkpoint.adapters import Slot
from zerofleet.trainer.checkpoint.fragments import MASTER
from zerofleet.trainer.config import SiloConfig
from zerofleet.trainer.silos.chunks import Chunk
from zerofleet.trainer.silos.codecs import load_codec
from zerofleet.trainer.silos.fixed_point import MASKED
from zerofleet.trainer.silos.outbox import RESIDUAL, UNTOLD, Outbox, reserve_extras
from zerofleet.trainer.silos.strategies import load_strategy
from zerofleet.trainer.storage import Storage

SIZE = 4
DELTA = [0.7, -0.123, 0.01, 0.3]


class Weights:
    """What an outbox asks of an adapter."""

    def __init__(self, values: list[float]) -> None:
        self.view, self.extras = torch.tensor(values), {}

    def slots(self):
        yield Slot("w", MASTER, 0, self.view, 0, SIZE)


def outbox_of(delta: list[float], codec: str = "fp32") -> tuple[Outbox, list[str]]:
    """With inner steps behind it that have made this delta of outer weights that are zero; and what it says within its silo."""
    config = SiloConfig(name="a", interval_steps=1, codec=codec)
    weights: Any = Weights([-value for value in delta])
    reserve_extras(weights, config)
    said: list[str] = []
    outbox = Outbox(config, weights, said.append)
    outbox.rebase([(next(weights.slots()), np.zeros(SIZE, np.float32))])
    return outbox, said


class Server:
    """Outer rounds of two silos, of which `a` sends what its outbox has and `b` as much again, or garbage."""

    def __init__(self, folder) -> None:
        store = OuterStore(Storage(str(folder)), 4)
        store.save(OuterState.initial({"w": np.zeros(SIZE, np.float32)}, []))
        terms = Terms({"a": 1.0, "b": 1.0}, load_strategy("fedavg"), load_codec("int8"), 2, 600.0)
        self.rounds = Rounds(terms, store, lambda kind, data: None)
        for silo in "ab":
            self._ask(silo, {"op": "open", "round": 0}, b"")

    def close(self, number: int, outbox: Outbox, is_step: bool) -> str:
        """What became of the outbox's delta."""
        for fields, payload in outbox.messages(number, 10):
            self._ask("a", {"op": "push", **fields}, payload)
            self._ask("b", {"op": "push", **fields, **({} if is_step else {"unusable": "nan"})}, payload)
        return self._ask("a", {"op": "verdict", "round": number}, b"")["state"]

    def _ask(self, silo: str, question: dict[str, Any], payload: bytes) -> dict[str, Any]:
        hello = {"silo": silo, "life": "1", "rank": 0, "world_size": 1}
        return self.rounds.answer(hello, question, bytearray(payload))[0]


def test_what_was_left_out_is_kept_over_a_round_that_changed_nothing(tmp_path):
    server, (outbox, _) = Server(tmp_path), outbox_of(DELTA, "int8")
    residual = outbox.adapter.extras[RESIDUAL]["w"]
    outbox.settle(server.close(1, outbox, is_step=True))
    left_out = residual.clone()
    assert left_out.any(), "int8 leaves something out of this delta"
    outbox.settle(server.close(2, outbox, is_step=False))
    assert torch.equal(residual, left_out)
    outbox.settle(server.close(3, outbox, is_step=True))
    assert not torch.equal(residual, left_out)


class Unmasked:
    """In place of masks: words as they are."""

    def put_on(self, values: np.ndarray, chunk: Chunk) -> bytes:
        return MASKED.encode(values, 0.5).tobytes()


def test_under_masks_nothing_of_an_unusable_delta_leaves_the_silo():
    outbox, said = outbox_of([0.7, -0.123, 5.25, 0.3])
    outbox.wrapping = Unmasked()
    for _ in range(2):  # after a connection broke
        ((fields, payload),) = outbox.messages(1, 10)
        assert fields == {"round": 1, "tokens": 10, "is_last": True, "spans": [], "unusable": UNTOLD} and not payload
    assert said == ["element 2 is 5.25, beyond the +-4 that fixed point was made for"]
    outbox.settle("rejected")
    outbox.wrapping = Unmasked()
    list(outbox.messages(2, 10))
    assert len(said) == 2, "another round, another word"


def test_without_masks_the_server_hears_what_is_wrong():
    outbox, said = outbox_of([0.7, float("nan"), 0.2, 0.3], "int8")
    ((fields, _),) = outbox.messages(1, 10)
    assert fields["unusable"].startswith("element 1 of 4 is nan") and said == []
