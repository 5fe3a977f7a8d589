"""Durable writes, exclusive creates, segments: on a local disk and on a store without rename or append."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import uuid

import pytest

from zerofleet.trainer.errors import StorageError, UserError
from zerofleet.trainer.storage import Storage, read_segments


@pytest.fixture(params=["local", "memory"])
def storage(request, tmp_path):
    return Storage(str(tmp_path / "s") if request.param == "local" else f"memory://{uuid.uuid4().hex}/s")


def test_a_file_can_be_created_once(storage):
    storage.create("a/b.json", b"first")
    with pytest.raises(FileExistsError):
        storage.create("a/b.json", b"second")
    assert storage.read("a/b.json") == b"first"
    assert storage.list("a") == ["b.json"], "no temporary file is left"


def _claim(arguments):
    folder, number = arguments
    try:
        Storage(folder).create("claim", str(number).encode())
        return number
    except FileExistsError:
        return None


def test_of_many_that_claim_at_once_one_wins(tmp_path):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        winners = [w for w in pool.map(_claim, [(str(tmp_path), n) for n in range(40)], chunksize=1) if w is not None]
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


def test_segments_are_read_back_in_order_and_go_on_after_a_restart(storage):
    for start in (0, 3):
        writer = storage_writer(storage)
        for number in range(start, start + 3):
            writer.append(json.dumps(number))
            writer.flush()
        writer.close()
    assert [json.loads(line) for line in read_segments(storage, "log")] == list(range(6))


def storage_writer(storage):
    from zerofleet.trainer.storage import SegmentWriter

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
