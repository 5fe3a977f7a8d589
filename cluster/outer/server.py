"""The outer server: takes the silos' deltas, makes the outer step, hands out the outer weights. trainer/silos/wire.py is the other end.

A thread of the driver for each connection. Every answer depends on what is recorded of rounds, never on who asked first, so that a
silo that was killed and repeats a round gets the same again.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import socket
import socketserver
import threading
from typing import Any

from zerofleet.cluster.outer.rounds import Rounds
from zerofleet.cluster.outer.state import OuterStateDamaged
from zerofleet.cluster.snapshot_server import KEEPALIVE
from zerofleet.trainer.checkpoint.remote import receive, receive_into, send
from zerofleet.trainer.errors import StorageError
from zerofleet.trainer.silos.wire import Server

MOST_PAYLOAD_BYTES = 64 * 2**20
"""Of a message; wire.MOST_ELEMENTS in fp32 is a quarter of it."""

_log = logging.getLogger(__name__)


class OuterServer:
    """Serves until `close`, at a port of `address` that the kernel chooses."""

    def __init__(self, rounds: Rounds, address: str = "127.0.0.1") -> None:
        self._rounds = rounds
        answer = self._answer

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                answer(self.request)

        class Listener(socketserver.ThreadingTCPServer):
            daemon_threads = True
            request_queue_size = 512

        self._listener = Listener((address, 0), Handler)
        self.where = Server(address, self._listener.server_address[1], secrets.token_hex(16))
        """How silos reach it."""
        threading.Thread(target=self._listener.serve_forever, name="outer-server", daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown()
        self._listener.server_close()

    def _answer(self, connection: socket.socket) -> None:
        """One rank, until it goes. It may be silent for as long as its inner steps take."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        try:
            hello = receive(connection)
            if not hmac.compare_digest(str(hello.get("secret", "")), self.where.secret):
                return _log.warning("%s asked for outer weights without the run's secret", connection.getpeername())
            while True:
                self._answer_one(connection, hello, receive(connection))
        except ConnectionError as error:
            _log.info("rank of a silo went: %s", error)
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("a connection ended: %r", error)

    def _answer_one(self, connection: socket.socket, hello: dict[str, Any], question: dict[str, Any]) -> None:
        size = int(question["payload_bytes"])
        if size > MOST_PAYLOAD_BYTES:
            raise ValueError(f"a payload of {size} bytes is none of ours, they have at most {MOST_PAYLOAD_BYTES}")
        payload = bytearray(size)
        receive_into(connection, memoryview(payload))
        try:
            answer, body = self._rounds.answer(hello, question, payload)
        except StorageError as error:
            if isinstance(error, OuterStateDamaged):
                return send(connection, {"error": str(error)})
            # It may pass: without an answer the silo asks again.
            _log.warning("question %s of silo %s: %s", question.get("op"), hello.get("silo"), error)
            raise ConnectionError(f"storage: {error}") from error
        except Exception as error:  # noqa: BLE001 - the silo ends with it, and so learns why
            _log.exception("question %s of silo %s", question.get("op"), hello.get("silo"))
            return send(connection, {"error": str(error) or repr(error)})
        send(connection, answer)
        connection.sendall(body)
