"""Snapshots over the network: read by a rank of another node, sent to a buddy, and what becomes of those that cannot be."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.checkpoints import draft
from tests.trainer.checkpoint.test_snapshot import flip_payload
from zerofleet.cluster import snapshot_server
from zerofleet.cluster.replicas import Replicas
from zerofleet.cluster.replicator import Replicator
from zerofleet.cluster.snapshot_server import SnapshotServer
from zerofleet.trainer.checkpoint.buffer_set import BufferSet
from zerofleet.trainer.checkpoint.format import DamagedFile
from zerofleet.trainer.checkpoint.fragments import FragmentKey, digest
from zerofleet.trainer.checkpoint.mappings import Mappings
from zerofleet.trainer.checkpoint.memory import SnapshotReader
from zerofleet.trainer.checkpoint.remote import Holder, Peer, RemoteSnapshot, write_holders
from zerofleet.trainer.checkpoint.snapshot import (
    REPLICAS,
    SnapshotMeta,
    buffer_paths,
    find_snapshots,
    hash_snapshot,
    open_snapshot,
)
from zerofleet.trainer.errors import SnapshotUnreachable
from zerofleet.trainer.events import Event
from zerofleet.trainer.run_folder import CheckpointId

pytestmark = pytest.mark.timeout(60)

TCP_REPAIR = 19
"""Of linux/tcp.h."""
FOUR, FIVE = CheckpointId(4, 1), CheckpointId(5, 1)
VALUES = np.arange(100, dtype=np.float32)


def write(folder: Path, rank: int, start: int, end: int, step: int = 4) -> Path:
    meta = SnapshotMeta(step, 1, "main", rank, 2, "t", draft=None if rank else draft(step).to_dict())
    with BufferSet(folder, rank, 3).fill(meta, [FragmentKey("w", "master", start, end - start, "F32")]) as filling:
        filling.pieces[0][:] = VALUES[start:end].view(np.uint8)
    return filling.path


@pytest.fixture
def here(tmp_path) -> Path:
    return tmp_path / "here"


@pytest.fixture
def there(tmp_path) -> Iterator[SnapshotServer]:
    """Another node, with the folder `there`."""
    (tmp_path / "there").mkdir()
    with contextlib.closing(SnapshotServer(tmp_path / "there", "127.0.0.1", "secret")) as server:
        yield server


# -- reading -----------------------------------------------------------------------------------------------------------
def test_a_rank_reads_what_another_node_holds(tmp_path, here, there):
    write(here, 0, 0, 37)
    path = write(tmp_path / "there", 1, 37, 100)
    write_holders(here, [Holder(1, there.peer, str(path))])
    with contextlib.closing(SnapshotReader(here, FOUR, 2, "t")) as reader:
        assert reader.read("w", "master", 30, 20).tolist() == list(range(30, 50))
        parts = [reader.partial_digests(rank, 2)["master/w"] for rank in range(2)]
        assert sum(parts) % 2**64 == digest(VALUES, 0), "the remote part is summed up over there"


def test_while_it_is_read_it_is_not_overwritten(tmp_path, there):
    folder = tmp_path / "there"
    path = write(folder, 1, 37, 100)
    remote = RemoteSnapshot(Holder(1, there.peer, str(path)), FOUR)
    for step in range(5, 12):
        write(folder, 1, 0, 63, step)
    key, (start, end) = next(iter(remote.header().items()))
    assert np.frombuffer(remote.read(start, end), np.float32).tolist() == VALUES[37:100].tolist() and key.start == 37
    remote.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="to close a connection without a word needs root")
def test_a_reader_that_is_cut_off_does_not_pin_it_for_ever(tmp_path, there, monkeypatch):
    monkeypatch.setitem(snapshot_server.KEEPALIVE, socket.TCP_KEEPIDLE, 1)
    path = write(tmp_path / "there", 1, 37, 100)
    remote = RemoteSnapshot(Holder(1, there.peer, str(path)), FOUR)
    assert _is_held(path, fcntl.LOCK_EX)
    remote._connection.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)  # closed now, it sends nothing
    remote.close()
    deadline = time.monotonic() + 20
    while _is_held(path, fcntl.LOCK_EX):
        assert time.monotonic() < deadline, "pinned for a reader that is gone"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("change", "kind", "why"),
    [
        ({"peer": lambda peer: replace(peer, secret="guessed")}, SnapshotUnreachable, "closed the connection"),
        ({"peer": lambda peer: replace(peer, port=1)}, SnapshotUnreachable, "refused"),
        (
            {"path": lambda path: str(Path(path).parents[1] / "elsewhere" / Path(path).name)},
            DamagedFile,
            "no longer there",
        ),
        ({"path": lambda path: str(Path(path).with_name("rank-00009.0.snapshot"))}, DamagedFile, "no longer there"),
    ],
)
def test_a_connection_that_fails_says_nothing_against_a_snapshot_and_its_node_does(tmp_path, there, change, kind, why):
    path = write(tmp_path / "there", 1, 37, 100)
    write(tmp_path / "elsewhere", 1, 37, 100)
    good = Holder(1, there.peer, str(path))
    RemoteSnapshot(good, FOUR).close()
    wrong = replace(good, **{name: how(getattr(good, name)) for name, how in change.items()})
    with pytest.raises(kind, match=f"rank 1's snapshot cannot be read from 127.0.0.1:.*{why}"):
        RemoteSnapshot(wrong, FOUR)


def test_a_snapshot_of_another_step_is_not_taken_for_it(tmp_path, there):
    path = write(tmp_path / "there", 1, 37, 100, step=5)
    with pytest.raises(DamagedFile, match="no longer there"):
        RemoteSnapshot(Holder(1, there.peer, str(path)), FOUR)


def test_a_stranger_cannot_make_it_take_memory(there):
    with there.peer.connect() as connection:
        connection.sendall(b"\xff\xff\xff\xff")
        assert connection.recv(1) == b"", "it hangs up without waiting for the rest"


def test_a_node_that_dies_while_it_is_read_from(tmp_path):
    """A server that says what it has, and then nothing more."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_once() -> None:
            connection, _ = listener.accept()
            connection.recv(4096)
            text = b'{"meta": {"step": 4, "attempt": 1, "silo": "main", "rank": 1, "world_size": 2, "token": "t"}}'
            connection.sendall(len(text).to_bytes(4, "little") + text)
            connection.recv(16)
            connection.sendall(b"half")
            connection.close()

        threading.Thread(target=answer_once, daemon=True).start()
        remote = RemoteSnapshot(Holder(1, Peer("127.0.0.1", listener.getsockname()[1], "secret"), "/x"), FOUR)
        with pytest.raises(SnapshotUnreachable, match="closed the connection"):
            remote.read(0, 100)


# -- sending -----------------------------------------------------------------------------------------------------------
class Heard:
    def __init__(self) -> None:
        self._events: list[Event] = []
        self._arrived = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self._arrived:
            self._events.append(event)
            self._arrived.notify_all()

    def message(self, number: int = 1) -> str:
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self._events) >= number, 20)
            return self._events[number - 1].data["message"]


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def replicator(heard) -> Iterator[Replicator]:
    with contextlib.closing(Replicator(heard, Mappings())) as made:
        yield made


def test_what_is_sent_arrives_whole(tmp_path, here, there, heard, replicator):
    path = write(here, 0, 0, 37)
    replicator.aim(there.peer)
    replicator.order(str(path), 0, FOUR, 2)
    assert heard.message() == ""
    ((where, meta),) = find_snapshots(tmp_path / "there")
    assert where.parent.name == REPLICAS and meta == open_snapshot(path).meta, "draft and events included"
    assert bytes(open_snapshot(where).payload) == bytes(open_snapshot(path).payload)


def test_a_replica_has_its_digest_and_one_of_damaged_bytes_is_not_taken(tmp_path, here, there, heard, replicator):
    path = write(here, 0, 0, 37)
    replicator.aim(there.peer)
    replicator.order(str(path), 0, FOUR, 2)
    assert heard.message() == ""
    ((where, _),) = find_snapshots(tmp_path / "there")
    assert open_snapshot(where).digest == open_snapshot(path).digest is not None
    newer = write(here, 0, 0, 37, 5)
    hash_snapshot(newer)
    flip_payload(newer)
    replicator.order(str(newer), 0, FIVE, 2)
    assert heard.message(2) == "what arrived is not what rank 0 put into step 5's snapshot"
    assert [meta.step for _, meta in find_snapshots(tmp_path / "there")] == [4]


def test_a_remote_snapshot_is_compared_with_its_digest_over_there(tmp_path, here, there):
    write(here, 0, 0, 37)
    path = write(tmp_path / "there", 1, 37, 100)
    hash_snapshot(path)
    flip_payload(path)
    write_holders(here, [Holder(1, there.peer, str(path))])
    with (
        contextlib.closing(SnapshotReader(here, FOUR, 2, "t")) as reader,
        pytest.raises(DamagedFile, match="does not hold what rank 1 put there in step 4"),
    ):
        reader.partial_digests(1, 2)


def test_a_buddy_keeps_the_newest_whole_one_while_the_next_comes(tmp_path, here, there, heard, replicator):
    replicator.aim(there.peer)
    for number, step in enumerate((4, 5, 6), 1):
        replicator.order(str(write(here, 0, 0, 37, step)), 0, CheckpointId(step, 1), 2)
        assert heard.message(number) == ""
    assert sorted(meta.step for _, meta in find_snapshots(tmp_path / "there")) == [5, 6]


def test_what_was_sent_stays_until_all_buddies_have_a_newer_one(here, there, heard, replicator):
    replicator.aim(there.peer)
    replicator.order(str(write(here, 0, 0, 37)), 0, FOUR, 2)
    assert heard.message() == ""
    for step in range(5, 9):
        write(here, 0, 0, 37, step)
    assert 4 in {meta.step for _, meta in find_snapshots(here)}, "its own part, for when the other node dies"
    replicator.release(CheckpointId(8, 1))
    for step in range(9, 12):
        write(here, 0, 0, 37, step)
    assert 4 not in {meta.step for _, meta in find_snapshots(here)}


def test_steps_that_a_buddy_did_not_get_cost_no_buffers(here, heard, replicator):
    replicator.aim(Peer("127.0.0.1", 1, ""))
    for number, step in enumerate(range(4, 12), 1):
        replicator.order(str(write(here, 0, 0, 37, step)), 0, CheckpointId(step, 1), 2)
        assert "refused" in heard.message(number)
        replicator.drop(CheckpointId(step, 1))


def test_the_last_step_that_all_buddies_have_outlasts_those_that_they_did_not_get(here, there, heard, replicator):
    replicator.aim(there.peer)
    replicator.order(str(write(here, 0, 0, 37)), 0, FOUR, 2)
    assert heard.message() == ""
    replicator.order(str(write(here, 0, 0, 37, 5)), 0, FIVE, 2)
    heard.message(2)
    replicator.drop(FIVE)
    for step in range(6, 12):
        write(here, 0, 0, 37, step)
    assert 4 in {meta.step for _, meta in find_snapshots(here)}


@pytest.mark.parametrize(
    ("buddy", "why"), [(None, "has no buddy"), (Peer("127.0.0.1", 1, ""), "could not be sent: .*refused")]
)
def test_without_a_buddy_it_says_so(here, heard, replicator, buddy, why):
    replicator.aim(buddy)
    replicator.order(str(write(here, 0, 0, 37)), 0, FOUR, 2)
    assert why.split(":")[0] in heard.message()


def test_what_was_overwritten_before_it_could_be_sent_is_not_sent(tmp_path, here, there, heard, replicator):
    path = write(here, 0, 0, 37, step=5)
    replicator.aim(there.peer)
    replicator.order(str(path), 0, FOUR, 2)
    replicator.order(None, 0, FIVE, 2)
    assert "had no snapshot" in heard.message(1) and "had no snapshot" in heard.message(2)
    assert find_snapshots(tmp_path / "there") == []


def test_a_half_sent_one_does_not_count(tmp_path, here, there):
    """The sender dies: what it had sent before is still whole."""
    snapshot = open_snapshot(write(here, 0, 0, 37))
    from dataclasses import asdict

    from zerofleet.trainer.checkpoint.remote import receive, send

    with there.peer.connect() as connection:
        request = {"meta": asdict(snapshot.meta), "payload_bytes": len(snapshot.payload), "digest": "0" * 32}
        send(connection, {"op": "put", "secret": "secret", **request})
        assert receive(connection) == {}
        connection.sendall(snapshot.payload[: len(snapshot.payload) // 2])
    replica = buffer_paths(tmp_path / "there" / REPLICAS, 0)[0]
    deadline = time.monotonic() + 10
    while _is_held(replica, fcntl.LOCK_SH):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert find_snapshots(tmp_path / "there") == []


def _is_held(path: Path, against: int) -> bool:
    """Whether somebody holds a lock that keeps others from this one: LOCK_EX from writing, LOCK_SH from reading too."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, against | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


# -- what the driver makes of it ---------------------------------------------------------------------------------------
def replicated(rank: int, step: int, message: str = "", attempt: int = 1) -> Event:
    checkpoint = {"step": step, "attempt": attempt, "silo": "main"}
    data = {"checkpoint": checkpoint, "world_size": 2, "message": message}
    return Event("replicated", attempt, rank, step, "snapshot", 0.0, data=data)


def test_a_step_is_settled_when_every_rank_was_heard_of():
    replicas = Replicas()
    assert replicas.hear(replicated(1, 4)) is None
    settled = replicas.hear(replicated(0, 4))
    assert (settled.checkpoint, settled.problem, settled.is_news) == (FOUR, "", False)


def test_trouble_is_news_once_and_its_end_too():
    replicas, news = Replicas(), []
    for step, message in ((4, ""), (5, "no room"), (6, "no room"), (7, ""), (8, "")):
        replicas.hear(replicated(0, step, message))
        settled = replicas.hear(replicated(1, step))
        if settled.is_news:
            news.append((step, settled.told().get("class"), settled.told()["message"]))
    assert [(step, kind) for step, kind, _ in news] == [(5, "memory"), (7, None)]
    assert "no room" in news[0][2] and "of step 7" in news[1][2]


def test_parts_of_attempts_that_are_over_do_not_complete_a_step():
    replicas = Replicas()
    assert replicas.hear(replicated(0, 9)) is None
    assert replicas.hear(replicated(0, 4, attempt=2)) is None
    assert replicas.hear(replicated(1, 9)) is None, "of attempt 1"
    assert replicas.hear(replicated(1, 4, attempt=2)).checkpoint == CheckpointId(4, 2)
