"""Snapshots reach storage byte for byte, pinned meanwhile, as soon as storage takes them."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.support.checkpoints import VALUES, snapshot
from tests.trainer.checkpoint.test_snapshot import flip_payload
from zerofleet.cluster import snapshot_writer
from zerofleet.cluster.policy import backoff
from zerofleet.cluster.snapshot_writer import SnapshotWriter, remove_snapshots, snapshot_folder
from zerofleet.trainer.checkpoint.commit import Written, assemble, commit
from zerofleet.trainer.checkpoint.mappings import Mappings
from zerofleet.trainer.checkpoint.reader import CheckpointReader
from zerofleet.trainer.checkpoint.remote import write_holders
from zerofleet.trainer.checkpoint.snapshot import find_snapshots, hash_snapshot, open_snapshot
from zerofleet.trainer.config import CheckpointConfig
from zerofleet.trainer.errors import StorageError
from zerofleet.trainer.run_folder import CheckpointId, RunFolder

pytestmark = pytest.mark.timeout(30)
FOUR = CheckpointId(4, 1)


class Heard:
    def __init__(self) -> None:
        self.events = []
        self._arrived = threading.Condition()

    def __call__(self, event) -> None:
        with self._arrived:
            self.events.append(event)
            self._arrived.notify_all()

    def of(self, *kinds, count=1):
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self._found(kinds)) >= count, 10), self.events
            return self._found(kinds)

    def _found(self, kinds):
        return [event for event in self.events if event.kind in kinds]


@pytest.fixture
def run(tmp_path):
    run = RunFolder(str(tmp_path / "runs"), "r")
    run.create("{}")
    run.claim_attempt(1, None, 2, 1)
    return run


@pytest.fixture
def heard():
    return Heard()


class Later:
    """In place of the hasher: what it was asked for."""

    def __init__(self) -> None:
        self.orders = []

    def order(self, path, rank) -> None:
        self.orders.append((path, rank))


def new_writer(run, heard, later=None) -> SnapshotWriter:
    return SnapshotWriter(run.storage, heard, Mappings(), later or Later())


@pytest.fixture
def writer(run, heard):
    writer = new_writer(run, heard)
    yield writer
    writer.close()


def test_two_snapshots_become_a_checkpoint(run, writer, heard, tmp_path):
    for rank in (0, 1):
        writer.order(snapshot(tmp_path / "shm", FOUR, rank), rank, FOUR)
    events = heard.of("written", count=2)
    assert [(e.attempt, e.rank, e.step) for e in events] == [(1, 0, 4), (1, 1, 4)]
    assert [[r["step"] for r in e.data["results"]] for e in events] == [[3, 4], []], "nobody else may have heard them"
    commit(CheckpointConfig(), run, assemble([Written.from_dict(e.data) for e in events]), lambda: None)
    reader = CheckpointReader(run.storage, FOUR)
    reader.check_blocks()
    assert reader.read("w", "master", 0, 100).tolist() == VALUES.tolist()


def test_what_is_committed_is_never_written_again(run, writer, heard, tmp_path):
    paths = [snapshot(tmp_path / "shm", FOUR, rank) for rank in (0, 1)]
    for rank, path in enumerate(paths):
        writer.order(path, rank, FOUR)
    written = [Written.from_dict(e.data) for e in heard.of("written", count=2)]
    commit(CheckpointConfig(), run, assemble(written), lambda: None)
    file = run.storage.local_path(FOUR.rank_file(0, 2))
    before = file.stat().st_mtime_ns
    another = new_writer(run, heard)  # of an agent that has not written it
    another.order(paths[0], 0, FOUR)
    assert "FileExistsError" in heard.of("unwritten")[0].data["message"]
    another.close()
    assert file.stat().st_mtime_ns == before
    CheckpointReader(run.storage, FOUR).check_blocks()


def test_what_is_ordered_again_is_left_as_it_is_and_told_again(run, writer, heard, tmp_path):
    """A commit of it may be under way, which would find its file missing."""
    path = snapshot(tmp_path / "shm", FOUR, 0)
    writer.order(path, 0, FOUR)
    (first,) = heard.of("written")
    file = run.storage.local_path(FOUR.rank_file(0, 2))
    before = file.stat().st_mtime_ns
    writer.order(path, 0, FOUR)
    again = heard.of("written", count=2)[1]
    assert again.data == first.data and file.stat().st_mtime_ns == before
    file.unlink()
    writer.order(path, 0, FOUR)
    assert heard.of("written", count=3)[2].data["rank_file"] == first.data["rank_file"] and file.exists()


def test_a_snapshot_is_pinned_until_it_is_written(run, heard, tmp_path, monkeypatch):
    gate = threading.Event()
    write = snapshot_writer.write_payload
    monkeypatch.setattr(snapshot_writer, "write_payload", lambda *a: gate.wait(10) and write(*a))
    folder = tmp_path / "shm"
    writer = new_writer(run, heard)
    writer.order(snapshot(folder, FOUR, 0), 0, FOUR)
    for step in (5, 6, 7, 8):
        snapshot(folder, CheckpointId(step, 1), 0)
    assert sorted(meta.step for _, meta in find_snapshots(folder)) == [4, 7, 8]
    gate.set()
    heard.of("written")
    writer.close()
    snapshot(folder, CheckpointId(9, 1), 0)
    assert sorted(meta.step for _, meta in find_snapshots(folder)) == [7, 8, 9]


def test_a_damaged_snapshot_is_not_made_durable(run, writer, heard, tmp_path):
    path = snapshot(tmp_path / "shm", FOUR, 1)
    hash_snapshot(path)
    flip_payload(path)
    writer.order(path, 1, FOUR)
    (event,) = heard.of("unwritten")
    assert event.rank == 1 and f"{path} does not hold what rank 1 put there in step 4" in event.data["message"]
    assert not run.storage.exists(FOUR.rank_file(1, 2))


def test_memory_that_changes_between_two_tries_is_not_made_durable(run, heard, tmp_path, monkeypatch):
    monkeypatch.setattr(backoff, "FIRST_S", 0.01)
    write, scan, path = snapshot_writer.write_payload, snapshot_writer._scan, snapshot(tmp_path / "shm", FOUR, 1)
    tries, scans = [], []

    def down_at_first(*arguments):
        tries.append(1)
        if len(tries) == 1:
            raise StorageError("connection refused")
        return write(*arguments)

    def scan_changed(snapshot):
        scans.append(1)
        if len(scans) == 2:
            flip_payload(path)
        return scan(snapshot)

    monkeypatch.setattr(snapshot_writer, "write_payload", down_at_first)
    monkeypatch.setattr(snapshot_writer, "_scan", scan_changed)
    writer = new_writer(run, heard)
    writer.order(path, 1, FOUR)
    (event,) = heard.of("unwritten")
    assert f"{path} does not hold what rank 1 put there in step 4" in event.data["message"]
    assert not run.storage.exists(FOUR.rank_file(1, 2))
    writer.close()


def test_while_storage_is_down_the_digest_is_known_all_the_same(run, heard, tmp_path, monkeypatch):
    def down(*arguments):
        raise StorageError("connection refused")

    monkeypatch.setattr(snapshot_writer, "write_payload", down)
    later = Later()
    writer = new_writer(run, heard, later)
    path, other = (snapshot(tmp_path / "shm", FOUR, rank) for rank in (0, 1))
    writer.order(path, 0, FOUR)
    heard.of("incident")
    writer.order(other, 1, FOUR)
    writer.order(None, 1, FOUR)
    writer.close()
    assert later.orders == [(other, 1)], "what waits is hashed by somebody else"
    assert open_snapshot(path).digest is not None and open_snapshot(other).digest is None


def test_buffers_are_mapped_once(run, heard, tmp_path):
    writer = new_writer(run, heard)
    for count in (1, 2, 3):
        path = snapshot(tmp_path / "shm", CheckpointId(count, 1), 0)
        writer.order(path, 0, CheckpointId(count, 1))
        heard.of("written", count=count)
    # Three buffers take turns: the fourth order finds the mapping of the first.
    before = mapped(tmp_path / "shm")
    path = snapshot(tmp_path / "shm", FOUR, 0)
    writer.order(path, 0, FOUR)
    heard.of("written", count=4)
    assert mapped(tmp_path / "shm") == before and len(before) >= 3
    writer.close()


def mapped(folder) -> set[str]:
    """Address and file of this process's mappings that are only read."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {f"{line.split()[0]} {line.split()[-1]}" for line in lines if str(folder) in line and " r--s " in line}


def test_what_was_written_is_known_by_its_digest_from_then_on(writer, heard, tmp_path):
    path = snapshot(tmp_path / "shm", FOUR, 0)
    writer.order(path, 0, FOUR)
    heard.of("written")
    assert open_snapshot(path).digest is not None


def test_an_outage_is_told_and_outlasted(run, heard, tmp_path, monkeypatch):
    monkeypatch.setattr(backoff, "FIRST_S", 0.01)
    tries = []
    write = snapshot_writer.write_payload

    def flaky(*arguments):
        tries.append(1)
        if len(tries) < 4:
            raise StorageError("connection refused")
        return write(*arguments)

    monkeypatch.setattr(snapshot_writer, "write_payload", flaky)
    writer = new_writer(run, heard)
    writer.order(snapshot(tmp_path / "shm", FOUR, 0), 0, FOUR)
    heard.of("written")
    (incident,) = heard.of("incident")
    assert "step 4 cannot be made durable and is tried again" in incident.data["message"]
    assert "training goes on" in incident.data["message"] and "connection refused" in incident.data["message"]
    writer.close()


def test_a_half_file_of_an_earlier_agent_is_replaced(run, writer, heard, tmp_path):
    run.storage.create(FOUR.rank_file(0, 2), b"half")
    writer.order(snapshot(tmp_path / "shm", FOUR, 0), 0, FOUR)
    (event,) = heard.of("written")
    assert run.storage.size(FOUR.rank_file(0, 2)) == event.data["rank_file"]["num_bytes"]


def test_an_order_without_its_snapshot_is_told(writer, heard, tmp_path):
    path = snapshot(tmp_path / "shm", CheckpointId(5, 1), 0)
    writer.order(path, 0, FOUR)
    writer.order(None, 1, FOUR)
    writer.order(tmp_path / "nothing", 1, FOUR)
    assert all("overwritten" in event.data["message"] for event in heard.of("unwritten", count=3))
    assert heard.of("unwritten")[0].data["checkpoint"] == {"step": 4, "attempt": 1, "silo": "main"}


def test_closing_does_not_wait_for_storage_and_says_what_was_not_written(run, heard, tmp_path, monkeypatch):
    def down(*arguments):
        raise StorageError("connection refused")

    monkeypatch.setattr(snapshot_writer, "write_payload", down)
    writer = new_writer(run, heard)
    path = snapshot(tmp_path / "shm", FOUR, 0)
    writer.order(path, 0, FOUR)
    heard.of("incident")
    started = time.monotonic()
    writer.close()
    assert time.monotonic() - started < 5
    assert "connection refused" in heard.of("unwritten")[0].data["message"]
    assert open_snapshot(path) is not None, "it stays in memory"


def test_folders_differ_by_run():
    places = {snapshot_folder(RunFolder(url, run)) for url in ("/a", "/b", "s3://b/a") for run in ("x", "y")}
    assert len(places) == 6 and all(place.startswith("/dev/shm/zerofleet-") for place in places)


def test_one_run_has_one_folder_however_its_storage_is_spelled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    spelled = [f"file://{tmp_path}/runs", f"{tmp_path}/runs/", "runs", "./runs", f"{tmp_path}/link"]
    assert len({snapshot_folder(RunFolder(url, "r")) for url in spelled}) == 1


def test_only_snapshots_are_removed_and_folders_that_are_empty_then(tmp_path):
    for node in ("node-0", "node-1", "node-0/replicas"):
        snapshot(tmp_path / "run" / node, FOUR, 0)
    write_holders(tmp_path / "run" / "node-0", [])
    stranger = tmp_path / "run" / "node-1" / "precious.txt"
    stranger.write_text("mine")
    remove_snapshots(tmp_path / "run" / "node-0")
    remove_snapshots(tmp_path / "run" / "node-1")
    assert not (tmp_path / "run" / "node-0").exists()
    assert [path.name for path in (tmp_path / "run" / "node-1").iterdir()] == ["precious.txt"]
    stranger.unlink()
    remove_snapshots(tmp_path / "run" / "node-1")
    assert not (tmp_path / "run").exists()
    remove_snapshots(tmp_path / "never" / "made")
