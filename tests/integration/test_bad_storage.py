"""Storage that fills up while a run saves: the run says so, ends by itself, and goes on when there is room."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.support.cli import Cli, losses, positions

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(200),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root"),
]

LONG = ["train.steps=20", "checkpoint.interval_steps=2"]


def test_a_disk_that_fills_while_saving_is_named_and_resume_goes_on_when_there_is_room(
    tmp_path, tiny_corpus, tiny_cache
):
    cli = Cli(tmp_path / "cli", tiny_corpus)
    cli.storage.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(cli.storage)], check=True)
    try:
        full = cli.submit("full", *LONG, "cluster.stop_timeout_s=20")
        assert full.returncode == 1
        said = full.stdout + full.stderr
        assert "the disk is full: free space there, or set run.storage to a larger place" in said
        assert "training goes on" in said and "step 20 is in the nodes' memory only" in said
        assert "Traceback" not in said
        subprocess.run(["mount", "-o", "remount,size=20m", str(cli.storage)], check=True)
        resumed = cli("resume", "full", "cluster.stop_timeout_s=100")
        assert resumed.returncode == 0, resumed.stdout + resumed.stderr
        run = cli.run("full")
        assert [(a.start_step, a.from_memory) for a in run.attempts()] == [(0, False), (20, True)]
        assert sorted(losses(run)) == list(range(1, 21)) and positions(run) == list(range(160))
    finally:
        subprocess.run(["umount", "-l", str(cli.storage)], check=True)


def test_a_read_only_storage_is_refused_before_anything_starts(tmp_path, tiny_corpus):
    cli = Cli(tmp_path / "cli", tiny_corpus)
    cli.storage.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(cli.storage)], check=True)
    try:
        refused = cli.submit("refused", *LONG)
        assert refused.returncode == 2, refused.stderr
        assert "read-only" in refused.stderr and "run.storage" in refused.stderr and "Traceback" not in refused.stderr
    finally:
        subprocess.run(["umount", str(cli.storage)], check=True)
