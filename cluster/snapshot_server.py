"""A node's snapshots for other nodes: ranks that start from them read, and the agent whose buddy this node is writes.

trainer/checkpoint/remote.py has the messages. A thread for each connection; what is sent stays pinned until it ends.
"""

from __future__ import annotations

import hmac
import logging
import socket
import socketserver
import threading
from pathlib import Path
from typing import Any

import xxhash

from zerofleet.cluster.snapshot_writer import MAPPED_BYTES
from zerofleet.trainer.checkpoint.buffer_set import BufferSet, writable_mappings
from zerofleet.trainer.checkpoint.buffers import REPLICA_BUFFERS
from zerofleet.trainer.checkpoint.format import DamagedFile, blocks_of, digest_of_blocks
from zerofleet.trainer.checkpoint.memory import checked_digests
from zerofleet.trainer.checkpoint.remote import ASK_DIGESTS, RANGE, TIMEOUT_S, Peer, receive, receive_into, send
from zerofleet.trainer.checkpoint.snapshot import REPLICAS, Snapshot, SnapshotMeta, open_snapshot
from zerofleet.trainer.errors import StorageError
from zerofleet.trainer.run_folder import CheckpointId

KEEPALIVE = {
    socket.TCP_KEEPIDLE: 15,
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 3,
    # Keepalive does not run while something that was sent is not acknowledged. Milliseconds.
    socket.TCP_USER_TIMEOUT: 30_000,
}
"""A reader that has not answered for about 30 s is gone: seconds of silence, then between questions, and their number."""

_log = logging.getLogger(__name__)


class SnapshotServer:
    """Serves one folder until `close`."""

    def __init__(self, folder: Path, address: str, secret: str) -> None:
        """Listens on `address`, the node's own, at a port that the kernel chooses."""
        self._folder, self._secret = folder, secret
        self._replicas: dict[int, BufferSet] = {}
        self._mappings = writable_mappings(MAPPED_BYTES)
        self._lock = threading.Lock()
        answer = self._answer

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                answer(self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            request_queue_size = 512

        self._server = Server((address, 0), Handler)
        self.peer = Peer(address, self._server.server_address[1], secret)
        """How others reach it."""
        threading.Thread(target=self._server.serve_forever, name="snapshot-server", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(TIMEOUT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            request = receive(connection)
            if not hmac.compare_digest(str(request.get("secret", "")), self._secret):
                _log.warning("%s asked for snapshots without the group's secret", connection.getpeername())
            elif request["op"] == "put":
                self._take(connection, request)
            else:
                self._give(connection, request)
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.info("a connection ended: %s", error)  # the other end learns it by the same; it says so

    # -- reading ---------------------------------------------------------------------------------------------------
    def _give(self, connection: socket.socket, request: dict[str, Any]) -> None:
        snapshot = self._open(Path(request["path"]), CheckpointId(**request["checkpoint"]))
        if snapshot is None:
            return send(connection, {"error": "it is no longer there"})
        try:
            send(connection, {"meta": vars(snapshot.meta)})
            _wait_for_reader(connection)
            while (wanted := _next_range(connection)) is not None:
                if wanted == ASK_DIGESTS:
                    send(connection, _digests(snapshot))
                else:
                    start, end = RANGE.unpack(wanted)
                    connection.sendall(snapshot.read(start, end))
        finally:
            snapshot.close()

    def _open(self, path: Path, checkpoint: CheckpointId) -> Snapshot | None:
        if path.parent not in (self._folder, self._folder / REPLICAS):
            return None
        snapshot = open_snapshot(path)
        if snapshot is not None and snapshot.meta.checkpoint != checkpoint:
            snapshot.close()
            return None
        return snapshot

    # -- writing ---------------------------------------------------------------------------------------------------
    def _take(self, connection: socket.socket, request: dict[str, Any]) -> None:
        meta, size, digest = SnapshotMeta(**request["meta"]), int(request["payload_bytes"]), str(request["digest"])
        with self._lock:
            buffers = self._replicas.setdefault(
                meta.rank, BufferSet(self._folder / REPLICAS, meta.rank, REPLICA_BUFFERS, self._mappings)
            )
        try:
            with buffers.receive(meta, size, digest=digest) as buffer:
                if buffer is None:
                    return send(connection, {"error": "both of its buffers are being read"})
                send(connection, {})
                payload = buffer.pieces[0].data
                receive_into(connection, payload)
                if digest_of_blocks([xxhash.xxh3_128_hexdigest(block) for block in blocks_of(payload)]) != digest:
                    raise DamagedFile(f"what arrived is not what rank {meta.rank} put into step {meta.step}'s snapshot")
        except (StorageError, DamagedFile) as error:
            return send(connection, {"error": str(error)})
        send(connection, {})


def _digests(snapshot: Snapshot) -> dict[str, Any]:
    try:
        return dict(checked_digests(snapshot))
    except DamagedFile as error:
        return {"error": str(error)}


def _wait_for_reader(connection: socket.socket) -> None:
    """A rank asks when it needs the next range, however long that takes, and its end closes the connection. One that was cut off
    closes nothing: the kernel asks after it, else the snapshot would stay pinned for the life of the run."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _next_range(connection: socket.socket) -> bytes | None:
    """None when the other end has gone."""
    wanted = bytearray(RANGE.size)
    try:
        receive_into(connection, memoryview(wanted))
    except ConnectionError:
        return None
    return bytes(wanted)
