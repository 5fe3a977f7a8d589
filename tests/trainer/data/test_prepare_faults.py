"""Killed, out of space or not allowed to write: a second try ends as if nothing had happened."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.data.corpora import content, prepared, write_corpus
from tests.trainer.data.killed_prepare import SMALL_PART_BYTES
from zerofleet.trainer.data import parts
from zerofleet.trainer.errors import StorageError, UserError

NUM_KILLS = 16


@pytest.mark.timeout(90)
def test_killed_at_random_points_it_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    """The child process forks one preparation per kill point, which sends SIGKILL to itself at its n-th file operation."""
    files = write_corpus(tmp_path / "corpus")
    reference = prepared(files, tmp_path / "reference", packing="best_fit")
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed of the kill points: {seed}")
    arguments = [files, str(tmp_path / "killed"), str(seed), str(NUM_KILLS)]
    answer = subprocess.run(
        [sys.executable, "-m", "tests.trainer.data.killed_prepare", *arguments],
        cwd=Path(__file__).parents[3],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    report = json.loads(answer.stdout)
    assert report["signals"] == [9] * NUM_KILLS
    assert report["parts_kept"] > 0, "no kill came after a finished part: nothing was resumed"
    for index, folder in enumerate(sorted((tmp_path / "killed").iterdir())):
        if index % 3:  # else as another version would group it: nothing of the parts is used
            monkeypatch.setattr(parts, "_MIN_PART_BYTES", SMALL_PART_BYTES)
        assert content(prepared(files, folder, packing="best_fit")) == content(reference), folder
        monkeypatch.undo()


@contextlib.contextmanager
def mounted(folder: Path, options: str):
    """A small tmpfs for real: we may be root, whom no file mode stops."""
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize(("size", "stage"), [("4k", "tokenizer"), ("120k", "tokenise"), ("280k", "write")])
def test_a_full_disk_is_named_and_a_second_try_with_room_goes_on(tmp_path, size, stage):
    files = write_corpus(tmp_path / "corpus", num_words=1200)
    reference = prepared(files, tmp_path / "reference")
    full = tmp_path / "full"
    stages = []
    with mounted(full, f"size={size}"):
        with pytest.raises(StorageError, match=r"disk is full: free space there, or set data\.cache to a larger place"):
            prepared(files, full, progress=lambda *report: stages.append(report[0]))
        assert stages[-1] == stage
        assert not list(full.rglob("index.json"))
        subprocess.run(["mount", "-o", "remount,size=16m", str(full)], check=True)
        assert content(prepared(files, full)) == content(reference)


def test_a_cache_that_cannot_be_written_is_the_users_to_mend(tmp_path):
    files = write_corpus(tmp_path / "corpus", 5)
    with (
        mounted(tmp_path / "readonly", "ro"),
        pytest.raises(UserError, match=r"Read-only.*set data\.cache or ZEROFLEET_CACHE"),
    ):
        prepared(files, tmp_path / "readonly/cache")


def test_a_cache_below_a_file_is_the_users_to_mend(tmp_path):
    files = write_corpus(tmp_path / "corpus", 5)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be kept in .*file.*set data\.cache"):
        prepared(files, tmp_path / "file")
