"""Snapshots that another node holds, over TCP: one connection for each. cluster/snapshot_server.py is the other end.

A message is its length (4 bytes, little endian) and JSON. The first on a connection says what is wanted and proves by the
group's secret that it comes from one of its own; like Ray's own token it travels unencrypted, inside the cluster's network.
`open`: the answer holds the snapshot's description, then ranges are asked for and answered with their bytes. `put`: when the
answer says that there is room, the bytes of a payload follow, and a second answer comes when they are complete in memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zerofleet.trainer.checkpoint.format import DamagedFile, parse_header
from zerofleet.trainer.checkpoint.fragments import FragmentKey
from zerofleet.trainer.checkpoint.snapshot import SnapshotMeta
from zerofleet.trainer.errors import SnapshotUnreachable
from zerofleet.trainer.run_folder import CheckpointId

LENGTH = struct.Struct("<I")
RANGE = struct.Struct("<QQ")
"""Bytes [start, end) of the payload; an empty range asks for the digests instead."""
ASK_DIGESTS = RANGE.pack(0, 0)
MOST_BYTES = 64 * 2**20
"""Of a message: room for the description of a model with 100,000 tensors. A stranger cannot ask for more memory than that."""
TIMEOUT_S = 20.0
"""How long the other end may be silent."""
_HOLDERS = "holders.json"


@dataclass(frozen=True)
class Peer:
    """The snapshot server of a node."""

    address: str
    port: int
    secret: str

    def connect(self) -> socket.socket:
        """Raises OSError."""
        connection = socket.create_connection((self.address, self.port), TIMEOUT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


@dataclass(frozen=True)
class Holder:
    """Who has the snapshot of a rank."""

    rank: int
    peer: Peer
    path: str
    """Of the buffer, on that node."""


def write_holders(folder: Path, holders: Sequence[Holder]) -> None:
    """Leaves for the node's ranks where the snapshots are that they start from."""
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f"{_HOLDERS}.{os.getpid()}"
    fresh.touch(0o600)  # it holds the group's secret
    fresh.write_text(json.dumps([asdict(holder) for holder in holders]))
    fresh.replace(folder / _HOLDERS)


def read_holders(folder: Path) -> list[Holder]:
    """What `write_holders` left; nothing when every snapshot is on this node."""
    with contextlib.suppress(FileNotFoundError):
        entries = json.loads((folder / _HOLDERS).read_text())
        return [Holder(entry["rank"], Peer(**entry["peer"]), entry["path"]) for entry in entries]
    return []


def forget_holders(folder: Path) -> None:
    (folder / _HOLDERS).unlink(missing_ok=True)


class RemoteSnapshot:
    """A complete snapshot on another node, pinned there until `close`. All methods raise SnapshotUnreachable when the connection fails, which says
    nothing against the snapshot, and DamagedFile when that node says that it has none."""

    def __init__(self, holder: Holder, checkpoint: CheckpointId) -> None:
        self._holder, self._checkpoint = holder, checkpoint
        try:
            self._connection = holder.peer.connect()
            with contextlib.ExitStack() as undo:
                undo.callback(self._connection.close)
                wanted = {"path": holder.path, "checkpoint": asdict(checkpoint)}
                send(self._connection, {"op": "open", "secret": holder.peer.secret, **wanted})
                answer = receive(self._connection)
                undo.pop_all()
        except (OSError, ValueError) as error:
            raise self._unreachable(error) from error
        if "error" in answer:
            self.close()
            raise DamagedFile(self._said(answer["error"]))
        self.meta = SnapshotMeta(**answer["meta"])

    def header(self) -> Mapping[FragmentKey, tuple[int, int]]:
        """Fragments and their byte range in the payload."""
        return parse_header(bytes(self.read(0, self.meta.header_bytes)))

    def read(self, start: int, end: int) -> memoryview:
        """Bytes [start, end) of the payload."""
        data = memoryview(bytearray(end - start))
        if start < end:
            try:
                self._connection.sendall(RANGE.pack(start, end))
                receive_into(self._connection, data)
            except OSError as error:
                raise self._unreachable(error) from error
        return data

    def partial_digests(self) -> dict[str, int]:
        """As commit.partial_digests, computed over there."""
        try:
            self._connection.sendall(ASK_DIGESTS)
            answer = receive(self._connection)
        except (OSError, ValueError) as error:
            raise self._unreachable(error) from error
        if "error" in answer:
            raise DamagedFile(self._said(answer["error"]))
        return {str(label): int(value) for label, value in answer.items()}

    def close(self) -> None:
        self._connection.close()

    def _unreachable(self, why: Exception) -> SnapshotUnreachable:
        return SnapshotUnreachable(self._checkpoint.step, self._checkpoint.attempt, self._said(why))

    def _said(self, why: object) -> str:
        where = f"{self._holder.peer.address}:{self._holder.peer.port}"
        return f"rank {self._holder.rank}'s snapshot cannot be read from {where}: {why}"


# -- messages -----------------------------------------------------------------------------------------------------------
def send(connection: socket.socket, fields: dict[str, Any]) -> None:
    text = json.dumps(fields).encode()
    connection.sendall(LENGTH.pack(len(text)) + text)


def receive(connection: socket.socket) -> dict[str, Any]:
    """Raises OSError when the other end is silent or gone, ValueError for what is no message."""
    head = bytearray(LENGTH.size)
    receive_into(connection, memoryview(head))
    (size,) = LENGTH.unpack(head)
    if size > MOST_BYTES:
        raise ValueError(f"a message of {size} bytes is none of ours, they have at most {MOST_BYTES}")
    text = bytearray(size)
    receive_into(connection, memoryview(text))
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError(f"a message is a JSON object, not {type(fields).__name__}")
    return fields


def receive_into(connection: socket.socket, target: memoryview) -> None:
    """Fills `target`. Raises OSError when the other end is silent or gone."""
    while len(target):
        count = connection.recv_into(target)
        if not count:
            raise ConnectionError("the other end closed the connection")
        target = target[count:]
