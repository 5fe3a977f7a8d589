"""Mappings that are kept: the same as long as the file is the same and no larger, and gone with its name."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from zerofleet.trainer.checkpoint.mappings import Mappings

SIZE = 3 * mmap.PAGESIZE


def get(mappings: Mappings, path: Path, num_bytes: int = SIZE) -> mmap.mmap:
    file = os.open(path, os.O_RDONLY)
    try:
        return mappings.get(path, file, num_bytes)
    finally:
        os.close(file)


def held(path: Path) -> int:
    """How often this process has it mapped."""
    return sum(str(path) in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_it_is_made_once_and_shows_what_is_written_later(tmp_path):
    mappings, path = Mappings(), tmp_path / "a"
    path.write_bytes(b"x" * SIZE)
    mapped = get(mappings, path)
    assert get(mappings, path) is mapped and get(mappings, path, 5) is mapped
    with path.open("r+b") as file:
        file.write(b"new")
    assert mapped[:4] == b"newx" and held(path) == 1


def test_a_file_that_has_grown_is_mapped_anew(tmp_path):
    mappings, path = Mappings(), tmp_path / "a"
    path.write_bytes(b"x" * SIZE)
    get(mappings, path)
    path.write_bytes(b"y" * 2 * SIZE)
    assert get(mappings, path, 2 * SIZE)[-1:] == b"y" and held(path) == 1


def test_another_file_of_the_name_is_not_taken_for_it(tmp_path):
    mappings, path = Mappings(), tmp_path / "a"
    path.write_bytes(b"x" * SIZE)
    get(mappings, path)
    other = tmp_path / "b"
    other.write_bytes(b"y" * SIZE)
    other.rename(path)
    assert get(mappings, path)[:1] == b"y" and held(path) == 1


def test_memory_of_a_file_that_is_gone_is_given_back_when_the_next_is_asked_for(tmp_path):
    mappings, gone, other = Mappings(), tmp_path / "gone", tmp_path / "b"
    for path in (gone, other):
        path.write_bytes(b"x" * SIZE)
        get(mappings, path)
    gone.unlink()
    assert held(gone) == 1
    get(mappings, other)
    assert held(gone) == 0


def test_beyond_its_room_those_that_were_asked_for_longest_ago_are_let_go(tmp_path):
    mappings, paths = Mappings(2 * SIZE), [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(b"x" * SIZE)
    for path in (paths[0], paths[1], paths[0], paths[2]):
        get(mappings, path)
    assert [held(path) for path in paths] == [1, 0, 1]
    mappings.clear()
    assert [held(path) for path in paths] == [0, 0, 0]


def test_what_is_only_read_cannot_be_written(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x" * SIZE)
    with pytest.raises(TypeError):
        get(Mappings(), path)[0] = 1
