"""Snapshot buffers: what is whole stays whole, whoever is killed and whoever reads."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from zerofleet.trainer.checkpoint import format as format_module
from zerofleet.trainer.checkpoint import snapshot as snapshot_module
from zerofleet.trainer.checkpoint.buffer_set import BufferSet
from zerofleet.trainer.checkpoint.format import DamagedFile
from zerofleet.trainer.checkpoint.fragments import FragmentKey
from zerofleet.trainer.checkpoint.preamble import read_preamble
from zerofleet.trainer.checkpoint.snapshot import (
    SnapshotMeta,
    buffer_paths,
    find_snapshots,
    hash_snapshot,
    open_snapshot,
)
from zerofleet.trainer.errors import StorageError

pytestmark = pytest.mark.timeout(60)

KEYS = [FragmentKey("w", "master", 3, 1000, "F32"), FragmentKey("flags", "value", 0, 5, "BOOL")]


def meta(step: int, attempt: int = 1, **fields) -> SnapshotMeta:
    return SnapshotMeta(step, attempt, "main", 0, 2, "token", **fields)


def fill(buffers: BufferSet, step: int, keep: bool = False, **fields):
    """The path that was filled, None when none was free."""
    with buffers.fill(meta(step, **fields), KEYS, keep) as filling:
        if filling is None:
            return None
        filling.pieces[0].view(np.float32)[:] = step
        filling.pieces[1][:] = 1
        return filling.path


@pytest.mark.parametrize("num_buffers", [2, 3])
def test_what_an_attempt_began_from_outlasts_what_it_fenced_off(tmp_path, num_buffers):
    """A node died before step 6 was whole on all: the next attempt begins from step 5, of which this rank has 5 and 6."""
    for step in (4, 5, 6)[-num_buffers:]:
        fill(BufferSet(tmp_path, 0, num_buffers), step)
    again = BufferSet(tmp_path, 0, num_buffers)
    with again.fill(meta(6, attempt=2, start_step=5), KEYS) as filling:
        filling.pieces[0][:] = 0
        held = [(found.attempt, found.step) for _, found in find_snapshots(tmp_path)]
        assert (1, 5) in held, "while the first is filled"
    assert {(1, 5), (2, 6)} <= {(found.attempt, found.step) for _, found in find_snapshots(tmp_path)}


def steps(folder) -> list[int]:
    return sorted(found.step for _, found in find_snapshots(folder))


def test_what_is_filled_is_read_back_with_its_description(tmp_path):
    path = fill(BufferSet(tmp_path, 0, 3), 7, draft={"tensors": {}}, events=[{"kind": "step"}])
    snapshot = open_snapshot(path)
    assert (snapshot.meta.step, snapshot.meta.draft, snapshot.meta.events) == (7, {"tensors": {}}, [{"kind": "step"}])
    found = dict(snapshot.fragments())
    assert list(found) == KEYS
    assert found[KEYS[0]].tolist() == [7.0] * 1000 and found[KEYS[1]].tolist() == [1] * 5
    start, end = snapshot.header()[KEYS[0]]
    assert bytes(snapshot.read(start, end)) == np.full(1000, 7, np.float32).tobytes()


def test_the_newest_is_never_overwritten(tmp_path):
    buffers = BufferSet(tmp_path, 0, 2)
    for step in range(1, 8):
        fill(buffers, step)
        assert steps(tmp_path) == [s for s in (step - 1, step) if s]


def test_a_buffer_that_is_read_is_left_alone(tmp_path):
    buffers = BufferSet(tmp_path, 0, 3)
    held = open_snapshot(fill(buffers, 1))
    for step in range(2, 6):
        assert fill(buffers, step)
    assert steps(tmp_path) == [1, 4, 5] and dict(held.fragments())[KEYS[0]][0] == 1
    held.close()
    fill(buffers, 6)
    assert steps(tmp_path) == [4, 5, 6]


def test_when_all_are_read_none_is_filled(tmp_path):
    buffers = BufferSet(tmp_path, 0, 2)
    readers = [open_snapshot(fill(buffers, step)) for step in (1, 2)]
    assert fill(buffers, 3) is None
    assert steps(tmp_path) == [1, 2]
    readers[0].close()
    assert fill(buffers, 4) and steps(tmp_path) == [2, 4]


def test_the_last_one_waits_for_a_reader_to_end(tmp_path):
    buffers = BufferSet(tmp_path, 0, 2)
    readers = [open_snapshot(fill(buffers, step)) for step in (1, 2)]
    end = threading.Timer(0.1, readers[0].close)
    end.start()
    with buffers.fill(meta(3), KEYS, wait_s=30.0) as filling:
        assert filling is not None
    end.join()
    assert steps(tmp_path) == [2, 3]


def test_one_that_is_kept_stays_until_the_next_that_is(tmp_path):
    buffers = BufferSet(tmp_path, 0, 3)
    fill(buffers, 1, keep=True)
    for step in range(2, 7):
        fill(buffers, step)
    assert steps(tmp_path) == [1, 5, 6]
    fill(buffers, 7, keep=True)
    fill(buffers, 8)
    assert steps(tmp_path) == [6, 7, 8]


def test_a_snapshot_that_fails_on_the_way_is_none(tmp_path):
    buffers = BufferSet(tmp_path, 0, 3)
    fill(buffers, 1)
    with pytest.raises(RuntimeError), buffers.fill(meta(2), KEYS) as filling:
        filling.pieces[0][:] = 9
        raise RuntimeError("killed")
    assert steps(tmp_path) == [1]
    fill(buffers, 3)
    assert steps(tmp_path) == [1, 3], "the broken one is taken first"


CHILD = """
import os, signal, sys
from pathlib import Path
from tests.trainer.checkpoint.test_snapshot import KEYS, fill, meta
from zerofleet.trainer.checkpoint.buffer_set import BufferSet

buffers = BufferSet(Path(sys.argv[1]), 0, 3)
for step in (1, 2, 3):
    fill(buffers, step)
with buffers.fill(meta(4), KEYS) as filling:
    filling.pieces[0][:2000] = 1
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_rank_that_is_killed_while_it_fills_leaves_the_others_whole_and_no_lock(tmp_path):
    done = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], timeout=50)
    assert done.returncode == -signal.SIGKILL
    assert steps(tmp_path) == [2, 3]
    fill(BufferSet(tmp_path, 0, 3), 4)
    assert steps(tmp_path) == [2, 3, 4]


def test_rubbish_is_no_snapshot(tmp_path):
    path = buffer_paths(tmp_path, 0)[0]
    assert open_snapshot(path) is None
    for content in (b"", b"short", os.urandom(8192)):
        path.write_bytes(content)
        assert open_snapshot(path) is None


def at(data: bytes, place: int) -> bytes:
    """One bit is another."""
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


DAMAGES = {
    "of another version": (
        lambda data: data.replace(b"ZFSNAP02", b"ZFSNAP01"),
        "another version of zerofleet wrote it",
    ),
    "a step that is none": (lambda data: at(data, 24), "first page does not match its own hash"),
    "a flipped bit of the state": (lambda data: at(data, 9), "first page does not match its own hash"),
    "a flipped bit of the description": (lambda data: at(data, 140), "description does not match its hash"),
    "cut short in the payload": (lambda data: data[:-1], "cut short: it has"),
    "cut short in its first page": (lambda data: data[:40], "cut short to 40 bytes"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_left_out_and_told_and_its_buffer_is_used_again(tmp_path, damage):
    buffers, told = BufferSet(tmp_path, 0, 2), []
    fill(buffers, 1)
    path = fill(buffers, 2)
    change, why = DAMAGES[damage]
    before = num_descriptors(path)
    path.write_bytes(change(path.read_bytes()))
    assert open_snapshot(path) is None
    found = find_snapshots(tmp_path, lambda *what: told.append(what))
    assert [meta.step for _, meta in found] == [1]
    ((where, said),) = told
    assert where == path and why in said
    assert num_descriptors(path) == before, "nobody could ever fill it again: a descriptor holds its lock"
    fill(buffers, 3)
    fill(buffers, 4)
    assert steps(tmp_path) == [3, 4]


def test_a_description_of_another_version_is_damage(tmp_path, monkeypatch):
    path, told = fill(BufferSet(tmp_path, 0, 2), 1), []
    monkeypatch.setattr(snapshot_module, "SnapshotMeta", dataclasses.make_dataclass("SnapshotMeta", ["step", "other"]))
    assert find_snapshots(tmp_path, lambda *what: told.append(what)) == []
    assert told[0][0] == path and "none that this version knows" in told[0][1]


def flip_payload(path) -> None:
    with path.open("r+b") as file:
        preamble = read_preamble(file.fileno())
        file.seek(preamble.offset + preamble.size - 3)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def digest_of(path) -> str | None:
    with contextlib.closing(open_snapshot(path)) as found:
        return found.digest


def test_a_flipped_bit_is_noticed_from_the_hash_on(tmp_path):
    buffers = BufferSet(tmp_path, 0, 2)
    path = fill(buffers, 1)
    assert digest_of(path) is None
    hash_snapshot(path)
    with contextlib.closing(open_snapshot(path)) as found:
        assert found.check(found.hash()) == found.digest is not None
    flip_payload(path)
    hash_snapshot(path)  # as another agent may: what was noted first stays
    with contextlib.closing(open_snapshot(path)) as found, pytest.raises(DamagedFile) as caught:
        found.check(found.hash())
    assert str(caught.value) == f"{path} does not hold what rank 0 put there in step 1"


def test_of_two_who_hash_at_a_time_the_first_has_the_last_word(tmp_path):
    path = fill(BufferSet(tmp_path, 0, 2), 1)
    with path.open("r+b") as file:
        preamble = read_preamble(file.fileno())
        for digest in ("1" * 32, "2" * 32):
            preamble.write_digest(file.fileno(), digest)
        assert preamble.read_digest(file.fileno()) == "1" * 32


def test_the_next_snapshot_in_a_buffer_has_no_digest_yet(tmp_path):
    buffers = BufferSet(tmp_path, 0, 2)
    paths = [fill(buffers, step) for step in (1, 2)]
    for path in paths:
        hash_snapshot(path)
    assert fill(buffers, 3) == paths[0]
    assert digest_of(paths[0]) is None and digest_of(paths[1]) is not None
    hash_snapshot(paths[0])
    with contextlib.closing(open_snapshot(paths[0])) as found:
        assert found.check(found.hash())


def test_hashing_pins_nothing_and_ends_when_the_buffer_is_filled_anew(tmp_path, monkeypatch):
    buffers = BufferSet(tmp_path, 0, 2)
    monkeypatch.setattr(format_module, "BLOCK_BYTES", 1024)
    path = fill(buffers, 1)
    fill(buffers, 2)
    filled = []

    def overwrite() -> bool:
        filled.append(fill(buffers, 3 + len(filled)))
        return False

    hash_snapshot(path, overwrite)
    assert filled == [path], "its buffer was free, and the other blocks were not looked at"
    assert digest_of(path) is None, "what was hashed was of two snapshots"
    assert steps(tmp_path) == [2, 3]


def test_hashing_gives_up_when_it_is_told_and_where_there_is_nothing(tmp_path):
    path = fill(BufferSet(tmp_path, 0, 2), 1)
    hash_snapshot(path, lambda: True)
    assert digest_of(path) is None
    hash_snapshot(tmp_path / "nothing")
    path.write_bytes(path.read_bytes()[:100])
    hash_snapshot(path)


def num_descriptors(path) -> int:
    """This process's, the one that a mapping of its own keeps included."""
    links = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    return links.count(str(path))


def test_larger_snapshots_fit_into_buffers_of_smaller_ones(tmp_path):
    buffers = BufferSet(tmp_path, 0, 2)
    buffers.reserve(100)
    fill(buffers, 1, events=[{"text": "x" * 3_000_000}])
    assert steps(tmp_path) == [1]


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small tmpfs needs root")
def test_memory_that_is_not_there_is_said_before_anything_is_written(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)], check=True)
    try:
        with pytest.raises(StorageError, match=r"does not fit into memory .* enlarge /dev/shm"):
            BufferSet(tmp_path, 0, 3).reserve(1 << 20)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
