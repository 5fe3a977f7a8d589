"""What a silo's ranks and the outer server say to each other over TCP: one connection for each rank, questions and answers.

A message is its length and JSON (trainer/checkpoint/remote.py), and behind it the `payload_bytes` that it names. The first one
proves by the run's secret that it comes from one of its silos. Every question may be asked again after a connection broke.

| op        | asks                                                      | answer |
|---|---|---|
| `hello`   | silo, life (token of the attempt), rank, world_size        | none |
| `open`    | round: the newest that this silo's state has; -1: none     | round to start from: the same, or the newest; -1: this silo is to send the initial weights; -2: another does, ask again |
| `seed`    | sizes, spans, is_last; payload: initial weights, fp32      | |
| `push`    | round, tokens, spans with their encoded bytes, is_last; or unusable: why there is no delta | |
| `verdict` | round                                                      | state (below), round: whose weights to go on with; `reveal`: survivors |
| `pull`    | round, spans                                               | payload: outer weights, fp32 |

States of a verdict: `wait` (ask again), `done` (this silo's delta is in the round's outer step), `late` (the round was closed without it, or
without an outer step: it goes on with the newest weights), `rejected` (its delta was of no use; likewise). A span is a chunk (chunks.py). An answer with `error` says what is
wrong for good.

With secure aggregation (masking.py) rank 0 asks more before and after the deltas, and a verdict may be `reveal`: answer that question first.

| op        | asks                                                      | answer |
|---|---|---|
| `keys`    | round, keys: the silo's public ones                        | state: `wait`, `go`, or `out`: the round goes on without this silo; keys of all |
| `shares`  | round, sealed: shares of its secrets, by receiver          | state likewise; sealed: those for it, by sender |
| `reveal`  | round, seeds, mask_keys: shares of others' secrets          | |
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from zerofleet.trainer.checkpoint.remote import LENGTH, receive, receive_into
from zerofleet.trainer.errors import ZerofleetError
from zerofleet.trainer.silos.chunks import MAX_CHUNK_ELEMENTS, Chunk

VARIABLE = "ZEROFLEET_OUTER"
"""Environment variable of a silo's driver and ranks: `host:port secret` of the outer server."""
TIMEOUT_S = 60.0
"""How long the other end may be silent: a round's arithmetic and its file come before an answer."""
VERDICT_S = 1.0
"""How long the server holds back a verdict that says `wait`."""
MOST_ELEMENTS = 64 * MAX_CHUNK_ELEMENTS
"""Of a message."""

SENT = ("deltas", "initial_weights", "questions")
"""Kinds of what leaves a silo: its payloads, and the messages around them."""

State = Literal["wait", "done", "late", "rejected"]


class Refused(ZerofleetError):
    """The outer server cannot take what this silo asks."""


@dataclass(frozen=True)
class Server:
    """Where the outer server is."""

    host: str
    port: int
    secret: str

    @staticmethod
    def from_env() -> Server:
        """Raises ZerofleetError when whoever started this silo does not say."""
        text = os.environ.get(VARIABLE, "")
        address, _, secret = text.partition(" ")
        host, _, port = address.rpartition(":")
        if not (host and port.isdecimal() and secret):
            raise ZerofleetError(
                f"this run is a silo of another, and {VARIABLE} does not say where that one's server is"
            )
        return Server(host, int(port), secret)

    def to_env(self) -> str:
        return f"{self.host}:{self.port} {self.secret}"


class Connection:
    """A rank's end. Counts every byte that it sends: that is the silo's egress."""

    def __init__(self, server: Server, hello: dict[str, Any]) -> None:
        self._server, self._hello = server, hello
        self._socket: socket.socket | None = None
        self.sent_bytes = dict.fromkeys(SENT, 0)
        self.received_bytes = 0

    def ask(self, op: str, fields: dict[str, Any], payload: bytes = b"") -> dict[str, Any]:
        """The answer. Raises OSError when the server cannot be reached, Refused when it says no."""
        try:
            connection = self._connected()
            self._send(connection, {"op": op, **fields}, payload)
            answer = receive(connection)
        except (OSError, ValueError) as error:
            self.close()
            raise ConnectionError(f"the outer server at {self._server.host}:{self._server.port}: {error}") from error
        if "error" in answer:
            raise Refused(str(answer["error"]))
        return answer

    def payload(self, num_bytes: int) -> bytearray:
        """What follows the last answer. Raises OSError."""
        assert self._socket is not None
        data = bytearray(num_bytes)
        try:
            receive_into(self._socket, memoryview(data))
        except OSError:
            self.close()
            raise
        self.received_bytes += num_bytes
        return data

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connected(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.create_connection((self._server.host, self._server.port), TIMEOUT_S)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._send(self._socket, {"op": "hello", "secret": self._server.secret, **self._hello}, b"")
        return self._socket

    def _send(self, connection: socket.socket, message: dict[str, Any], payload: bytes) -> None:
        text = json.dumps({**message, "payload_bytes": len(payload)}).encode()
        connection.sendall(LENGTH.pack(len(text)) + text)
        connection.sendall(payload)
        self.sent_bytes["questions"] += LENGTH.size + len(text)
        if payload:
            self.sent_bytes["deltas" if message["op"] == "push" else "initial_weights"] += len(payload)


def cut(chunks: Sequence[Chunk]) -> Iterator[list[Chunk]]:
    """Chunks in messages of at most MOST_ELEMENTS; one that is longer than MAX_CHUNK_ELEMENTS is cut."""
    batch: list[Chunk] = []
    room = MOST_ELEMENTS
    for name, start, count in chunks:
        for at in range(start, start + count, MAX_CHUNK_ELEMENTS):
            part = min(MAX_CHUNK_ELEMENTS, start + count - at)
            if part > room:
                yield batch
                batch, room = [], MOST_ELEMENTS
            batch.append(Chunk(name, at, part))
            room -= part
    if batch:
        yield batch
