"""Files that are written past the page cache or through it, and read straight into place."""

from __future__ import annotations

import errno
import mmap
import os

import pytest

from zerofleet.trainer import local_file
from zerofleet.trainer.local_file import NewFile, read_pieces

MIB = 1 << 20


def aligned(num_bytes: int) -> memoryview:
    """As a snapshot lies in memory: at the beginning of a page."""
    mapped = mmap.mmap(-1, num_bytes)
    mapped[:] = os.urandom(num_bytes)
    return memoryview(mapped)


def written(path, chunks) -> NewFile:
    file = NewFile(path)
    for chunk in chunks:
        file.write(chunk)
    file.sync()
    file.close()
    return file


@pytest.fixture
def opened(monkeypatch):
    """The flags of every file that was opened."""
    flags, opens = [], os.open
    monkeypatch.setattr(os, "open", lambda path, flag, *mode: flags.append(flag) or opens(path, flag, *mode))
    return flags


@pytest.mark.parametrize(
    "sizes",
    [(2 * MIB, 3 * MIB + 5), (5, 2 * MIB), (2 * MIB, 0, 4095), (MIB - 1,), ()],
    ids=["odd end", "odd beginning", "small end", "small", "nothing"],
)
def test_what_is_written_is_there(tmp_path, sizes):
    chunks = [aligned(size) if size else memoryview(b"") for size in sizes]
    written(tmp_path / "file", chunks)
    assert (tmp_path / "file").read_bytes() == b"".join(chunks)


def test_large_aligned_pieces_go_past_the_page_cache_and_others_do_not(tmp_path, opened):
    written(tmp_path / "small", [aligned(MIB - 4096)])
    written(tmp_path / "odd", [b"12345", aligned(2 * MIB)])
    assert not any(flags & os.O_DIRECT for flags in opened)
    written(tmp_path / "large", [aligned(2 * MIB)])
    assert any(flags & os.O_DIRECT for flags in opened)


def test_memory_that_does_not_lie_well_is_written_all_the_same(tmp_path):
    chunk = aligned(2 * MIB + 1)[1:]
    written(tmp_path / "file", [chunk, chunk])
    assert (tmp_path / "file").read_bytes() == bytes(chunk) * 2


def test_a_disk_that_refuses_in_the_middle_gets_the_rest_through_the_page_cache(tmp_path, monkeypatch):
    pwrite, tries = os.pwrite, []

    def refusing(file, data, offset):
        tries.append(offset)
        if len(tries) == 2:
            raise OSError(errno.EINVAL, "no")
        return pwrite(file, data[:MIB], offset)

    monkeypatch.setattr(os, "pwrite", refusing)
    chunk = aligned(4 * MIB)
    written(tmp_path / "file", [chunk])
    assert (tmp_path / "file").read_bytes() == bytes(chunk) and tries[:3] == [0, MIB, MIB]


def test_an_error_of_the_disk_is_raised(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="full"):
        NewFile(tmp_path / "file").write(aligned(2 * MIB))


def test_a_file_that_is_there_stays(tmp_path):
    (tmp_path / "file").write_bytes(b"first")
    with pytest.raises(FileExistsError):
        NewFile(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"first"


def test_pieces_are_filled_part_by_part_and_end_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(local_file, "_PART_BYTES", 4)
    (tmp_path / "file").write_bytes(b"0123456789")
    pieces = [bytearray(5), bytearray(0), bytearray(9)]
    parts = [bytes(part) for part in read_pieces(tmp_path / "file", 1, [memoryview(piece) for piece in pieces])]
    assert parts == [b"1234", b"5", b"6789"]
    assert pieces == [b"12345", b"", b"6789" + bytes(5)]
