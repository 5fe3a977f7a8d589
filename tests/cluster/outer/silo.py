"""A silo without a model: what its rank 0 would say to the outer server, in one process."""

from __future__ import annotations

import numpy as np

from zerofleet.trainer.silos.codecs import load_codec
from zerofleet.trainer.silos.wire import Connection, Server

SIZES = {"w": 6, "b": 2}


class Silo:
    """All parameters are equal numbers: `weights` says which."""

    def __init__(self, server: Server, name: str, life: str = "1", codec: str = "fp32") -> None:
        self.connection = Connection(server, {"silo": name, "life": life, "rank": 0, "world_size": 1})
        self.name, self.codec = name, load_codec(codec)

    def open(self, number: int = -1) -> int:
        return self.connection.ask("open", {"round": number})["round"]

    def seed(self, value: float = 1.0) -> None:
        spans = [(name, 0, size) for name, size in SIZES.items()]
        payload = np.full(sum(SIZES.values()), value, np.float32).tobytes()
        self.connection.ask("seed", {"sizes": SIZES, "spans": spans, "is_last": True}, payload)

    def push(self, number: int, delta: float, tokens: int = 10, is_last: bool = True) -> None:
        parts = [self.codec.encode(np.full(size, delta, np.float32)) for size in SIZES.values()]
        spans = [(name, 0, size, len(part)) for (name, size), part in zip(SIZES.items(), parts, strict=True)]
        fields = {"round": number, "tokens": tokens, "is_last": is_last}
        self.connection.ask("push", {**fields, "spans": spans}, b"".join(parts))

    def push_raw(self, number: int, spans: list, payload: bytes) -> None:
        fields = {"round": number, "tokens": 10, "is_last": True, "spans": spans}
        self.connection.ask("push", fields, payload)

    def verdict(self, number: int) -> tuple[str, int]:
        answer = self.connection.ask("verdict", {"round": number})
        return answer["state"], answer["round"]

    def weights(self, number: int) -> list[float]:
        answer = self.connection.ask("pull", {"round": number, "spans": [("w", 0, 6), ("b", 0, 2)]})
        return np.frombuffer(self.connection.payload(answer["body_bytes"]), np.float32).tolist()
