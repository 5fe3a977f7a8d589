"""Durable writes, exclusive creates, segments: on a local disk and on a store without rename or append."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile

from zerofleet.trainer import storage as storage_module
from zerofleet.trainer.errors import StorageError, UserError
from zerofleet.trainer.storage import SegmentWriter, Storage, read_segments


@pytest.fixture(params=["local", "memory"])
def storage(request, tmp_path):
    return Storage(str(tmp_path / "s") if request.param == "local" else f"memory://{uuid.uuid4().hex}/s")


def test_a_file_can_be_created_once(storage):
    storage.create("a/b.json", b"first")
    with pytest.raises(FileExistsError):
        storage.create("a/b.json", b"second")
    assert storage.read("a/b.json") == b"first"
    assert storage.list("a") == ["b.json"], "no temporary file is left"


def test_a_file_can_take_the_place_of_another(storage):
    for data in (b"first", b"second"):
        storage.replace("a/page.html", data)
        assert storage.read("a/page.html") == data and storage.list("a") == ["page.html"]


def test_a_file_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    storage = Storage(str(tmp_path))
    storage.replace("page.html", b"first")

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        storage.replace("page.html", b"second")
    assert storage.read("page.html") == b"first" and storage.list() == ["page.html"]


def _claim(arguments):
    folder, number = arguments
    try:
        Storage(folder).create("claim", str(number).encode())
        return number
    except FileExistsError:
        return None


def test_of_many_that_claim_at_once_one_wins(tmp_path):
    """Threads; test_storage_protocol.py has processes."""
    with ThreadPoolExecutor(4) as pool:
        winners = [w for w in pool.map(_claim, [(str(tmp_path), n) for n in range(40)]) if w is not None]
    assert len(winners) == 1 and Storage(str(tmp_path)).read("claim") == str(winners[0]).encode()


def test_byte_ranges_sizes_and_lists(storage):
    assert storage.write_stream("x/y", [b"0123", memoryview(b"456789")]) == 10
    assert storage.read("x/y", 2, 6) == b"2345" and storage.size("x/y") == 10
    assert storage.exists("x/y") and not storage.exists("x/z")
    assert storage.list("nothing") == []
    with pytest.raises(FileNotFoundError):
        storage.read("x/z")
    storage.remove("x")
    storage.remove("x")
    assert not storage.exists("x/y")


def test_bytes_are_read_straight_into_their_places(storage):
    storage.write_stream("x", [b"0123456789"])
    places = [bytearray(4), bytearray(0), bytearray(9)]
    parts = [bytes(part) for part in storage.read_pieces("x", 2, [memoryview(place) for place in places])]
    assert b"".join(parts) == b"23456789" and places == [b"2345", b"", b"6789" + bytes(5)], "nothing past the end"
    with pytest.raises(FileNotFoundError):
        list(storage.read_pieces("y", 0, [memoryview(bytearray(1))]))


def test_segments_are_read_back_in_order_and_go_on_after_a_restart(storage):
    for start in (0, 3):
        writer = storage_writer(storage)
        for number in range(start, start + 3):
            writer.append(json.dumps(number))
            writer.flush()
        writer.close()
    assert [json.loads(line) for line in read_segments(storage, "log")] == list(range(6))


def storage_writer(storage):

    return SegmentWriter(storage, "log")


def test_a_line_that_a_crash_cut_short_is_left_out(tmp_path):
    storage = Storage(str(tmp_path))
    (tmp_path / "log").mkdir()
    (tmp_path / "log/segment-00000.jsonl").write_bytes(b'{"a": 1}\n{"a": 2}\n{"a"')
    assert [json.loads(line)["a"] for line in read_segments(storage, "log")] == [1, 2]


def test_a_local_segment_can_be_followed_line_by_line(tmp_path):
    storage = Storage(str(tmp_path))
    writer = storage_writer(storage)
    writer.append("1")
    assert list(read_segments(storage, "log")) == ["1"]
    writer.append("2")
    assert list(read_segments(storage, "log")) == ["1", "2"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_said_with_its_path_and_leaves_no_half_file(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], check=True)
    try:
        storage = Storage(str(tmp_path))
        with pytest.raises(StorageError, match="the disk is full: free space there, or set run.storage"):
            storage.write_stream("big", (bytes(2**18) for _ in range(8)))
        assert storage.list() == []
        with pytest.raises(StorageError, match="the disk is full"):
            storage.create("big", bytes(2**21))
        assert storage.list() == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("use", [lambda s: s.create("a", b"x"), lambda s: s.write_stream("a", [b"x"]), Storage.list])
def test_a_file_in_the_place_of_the_folder_is_said(tmp_path, use):
    (tmp_path / "runs").write_text("mine")
    with pytest.raises(StorageError, match=r"Not a directory.*set run.storage to a folder"):
        use(Storage(str(tmp_path / "runs")))


def test_a_segment_whose_folder_is_a_file_is_no_claim_of_another(tmp_path):
    (tmp_path / "events").write_text("mine")
    with pytest.raises(StorageError, match="set run.storage to a folder"):
        SegmentWriter(Storage(str(tmp_path)), "events").append("{}")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a read-only file system needs root")
def test_a_read_only_place_is_said(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(tmp_path)], check=True)
    try:
        with pytest.raises(StorageError, match="read-only: set run.storage to a writable place"):
            Storage(str(tmp_path)).probe_writable()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_an_unknown_protocol_is_the_users_mistake():
    with pytest.raises(UserError, match="nosuch"):
        Storage("nosuch://bucket")


class Refusal(Exception):  # as botocore's: no OSError, and it holds the server's answer
    def __init__(self, status):
        super().__init__(f"status {status}")
        self.response = {"Error": {"Code": str(status)}, "ResponseMetadata": {"HTTPStatusCode": status}}


class Upload(AbstractBufferedFile):
    """A file of an object store: it is there when it has been closed, and not before."""

    def _upload_chunk(self, final=False):
        self.fs.fail_at("upload")
        self.fs.parts.append(self.buffer.getvalue())
        if final:
            self.fs.pipe_file(self.path, b"".join(self.fs.parts))

    def _initiate_upload(self):
        self.fs.parts = []

    def discard(self):
        ObjectStore.discarded += 1


class ObjectStore(MemoryFileSystem):
    protocol = "objects"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    failing: ClassVar[dict[str, Exception]] = {}
    discarded = 0
    buffers = True

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.removeprefix("objects://"))

    def fail_at(self, point):
        if point in self.failing:
            raise self.failing[point]

    def _open(self, path, mode="rb", **fields):
        self.fail_at("open")
        if "r" in mode or not self.buffers or fields.get("data") is not None:
            return super()._open(path, mode, **fields)
        return Upload(self, path, "wb", block_size=4)

    def cat_file(self, path, *positional, **fields):
        self.fail_at("read")
        return super().cat_file(path, *positional, **fields)


@pytest.fixture
def objects(monkeypatch):
    fsspec.register_implementation("objects", ObjectStore, clobber=True)
    monkeypatch.setattr(ObjectStore, "store", {})
    monkeypatch.setattr(ObjectStore, "failing", {})
    monkeypatch.setattr(ObjectStore, "discarded", 0)
    return Storage("objects://bucket/s")


ACTIONS = {
    "open": [lambda s: s.create("a", b"1"), lambda s: s.write_stream("a", [b"1"]), lambda s: s.probe_writable()],
    "upload": [lambda s: s.create("a", b"1"), lambda s: s.write_stream("a", [b"12345"]), lambda s: s.probe_writable()],
    "read": [lambda s: s.read("a")],
}


@pytest.mark.parametrize("point", ACTIONS)
def test_whatever_a_client_of_a_remote_store_raises_is_a_storage_error(objects, point):
    ObjectStore.failing = {point: LookupError("unable to locate credentials")}
    for action in ACTIONS[point]:
        with pytest.raises(StorageError, match="bucket/s.*LookupError: unable to locate.*check run.storage, the cred"):
            action(objects)
    ObjectStore.failing = {}
    assert objects.list() == [], "nothing is left, and closing the file later uploads nothing"


@pytest.mark.parametrize("point", ["open", "upload"])
def test_a_missing_bucket_is_an_answer_to_readers_only(objects, point):
    ObjectStore.failing = {point: FileNotFoundError("no such bucket"), "read": FileNotFoundError("no such bucket")}
    for action in ACTIONS[point]:
        with pytest.raises(StorageError, match="no such bucket"):
            action(objects)
    with pytest.raises(FileNotFoundError):
        objects.read("a")


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Refusal(412), FileExistsError),
        (Refusal(409), FileExistsError),
        (caused(OSError(errno.EINVAL, "precondition"), Refusal(412)), FileExistsError),
        (caused(OSError(errno.EBUSY, "slow down"), Refusal(503)), StorageError),
        (Refusal(403), StorageError),
    ],
)
def test_a_store_that_has_the_file_already_says_so_in_its_own_way(objects, answer, expected):
    objects.create("claim", b"first")
    ObjectStore.failing = {"upload": answer}
    with pytest.raises(expected):
        objects.create("claim", b"second")
    assert objects.read("claim") == b"first", "the file of who came first stays"


def test_an_earlier_refusal_that_is_being_handled_is_not_taken_for_this_one(objects):
    ObjectStore.failing = {"upload": LookupError("no credentials")}
    try:
        raise Refusal(412)
    except Refusal:
        with pytest.raises(StorageError):
            objects.create("claim", b"1")


def broken_off(error):
    yield b"12345678"
    raise error


@pytest.mark.parametrize("kind", ["local", "memory", "objects"])
@pytest.mark.parametrize("error", [RuntimeError("no memory"), OSError("bad"), KeyboardInterrupt()])
def test_a_stream_that_breaks_off_leaves_no_file(objects, tmp_path, kind, error):
    urls = {"local": str(tmp_path), "memory": f"memory://{uuid.uuid4().hex}", "objects": objects.url}
    storage = Storage(urls[kind])
    with pytest.raises(type(error)) as raised:
        storage.write_stream("a", broken_off(error))
    assert raised.value is error and not hasattr(error, "__notes__")
    assert not storage.exists("a")
    assert ObjectStore.discarded == (kind == "objects")
    assert storage.write_stream("a", [b"whole"]) == 5 and storage.read("a") == b"whole"


def test_lines_whose_write_failed_are_written_by_a_later_flush(objects):
    writer = storage_writer(objects)
    writer.append("1")
    ObjectStore.failing = {"upload": LookupError("gone")}
    with pytest.raises(StorageError):
        writer.flush()
    writer.append("2")
    ObjectStore.failing = {}
    writer.flush()
    assert list(read_segments(objects, "log")) == ["1", "2"]


def test_a_segment_that_arrived_though_its_answer_was_lost_is_not_written_twice(objects, monkeypatch):
    writer = storage_writer(objects)
    writer.append("1")
    objects.create("log/segment-00000.jsonl", b"1\n")
    writer.append("2")
    monkeypatch.setattr(ObjectStore, "buffers", False)  # this kind of file refuses at open what is there already
    writer.close()
    assert list(read_segments(objects, "log")) == ["1", "2"]


def test_a_local_line_that_was_written_by_half_is_written_over(tmp_path, monkeypatch):
    writer = storage_writer(Storage(str(tmp_path)))
    writer.append("first")
    pwrite = os.pwrite

    def full_after_three_bytes(descriptor, data, offset):
        if len(data) <= 4:
            raise OSError(errno.ENOSPC, "no space left")
        return pwrite(descriptor, data[:3], offset)

    monkeypatch.setattr(os, "pwrite", full_after_three_bytes)
    with pytest.raises(StorageError, match="the disk is full"):
        writer.append("second")
    monkeypatch.undo()
    assert list(read_segments(Storage(str(tmp_path)), "log")) == ["first"]
    writer.flush()
    writer.append("third")
    writer.close()
    assert list(read_segments(Storage(str(tmp_path)), "log")) == ["first", "second", "third"]


@pytest.fixture
def sick(tmp_path, monkeypatch):
    """Storage of which one path cannot be looked at."""
    real = os.stat

    def stat(path, *arguments, **named):
        if str(path).endswith("sick.json"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path, *arguments, **named)

    monkeypatch.setattr(os, "stat", stat)
    return Storage(str(tmp_path))


def test_a_disk_that_does_not_say_is_no_file_that_is_not_there(sick):
    assert not sick.exists("healthy.json") and not sick.exists("healthy.json/below")
    with pytest.raises(StorageError, match=r"sick.json failed \(Input/output error\)"):
        sick.exists("sick.json")


def test_segments_go_on_after_the_newest_when_an_older_one_was_cleared_away(storage):
    storage.create("ledger/segment-00001.jsonl", b"1\n")
    writer = SegmentWriter(storage, "ledger")
    writer.append("2")
    writer.close()
    assert list(read_segments(storage, "ledger")) == ["1", "2"]


def test_every_new_folder_is_made_durable(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(storage_module, "fsync_folder", synced.append)
    (tmp_path / "there").mkdir()
    Storage(str(tmp_path / "there")).write_stream("a/b/c.json", [b"1"])
    there = tmp_path / "there"
    assert {there, there / "a", there / "a" / "b"} <= set(synced) and tmp_path not in synced
