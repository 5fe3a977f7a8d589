"""The run folder's protocol, the same on a local disk and on S3 over HTTP, where nothing can be renamed or appended to."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest

from zerofleet.benchmarks.s3.server import BUCKET, S3Server, environment
from zerofleet.trainer.checkpoint.commit import Draft, Written, assemble, commit, partial_digests
from zerofleet.trainer.checkpoint.format import BLOCK_BYTES, Scalars, write_rank_file
from zerofleet.trainer.checkpoint.fragments import FragmentKey, Tensor
from zerofleet.trainer.checkpoint.reader import CheckpointReader
from zerofleet.trainer.checkpoint.select import select_checkpoint
from zerofleet.trainer.config import CheckpointConfig
from zerofleet.trainer.errors import Superseded, UserError
from zerofleet.trainer.run_folder import CheckpointId, RunFolder
from zerofleet.trainer.storage import Storage, read_segments

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]
ROOT = Path(__file__).parents[2]
PART_BYTES = 5 * 2**20
"""The smallest part of a multipart upload that S3 takes."""


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("moto", reason="the S3 server of the tests is moto, of the dev extra")
    with S3Server() as running:
        yield running


@pytest.fixture(params=["local", "s3"])
def url(request, tmp_path, monkeypatch):
    """Where a run folder may lie; also for processes that are started meanwhile."""
    if request.param == "local":
        return str(tmp_path)
    for name, value in environment(request.getfixturevalue("server").port).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"default_block_size": PART_BYTES})
    return f"s3://{BUCKET}/{tmp_path.name}"


@pytest.fixture
def run(url):
    return RunFolder(url, "a")


def test_a_name_is_taken_once(run):
    run.create("a: 1")
    with pytest.raises(UserError, match="exists already"):
        run.create("a: 1")
    assert run.job_yaml() == "a: 1"


@pytest.mark.parametrize("data", [b"", b"x", bytes(2 * PART_BYTES + 1)], ids=["empty", "one put", "multipart"])
def test_a_file_is_created_once_whatever_its_size(run, data):
    run.storage.create("f/x", data)
    with pytest.raises(FileExistsError):
        run.storage.create("f/x", b"other" if not data else b"")
    with pytest.raises(FileExistsError):
        run.storage.create("f/x", data)
    assert run.storage.read("f/x") == data and run.storage.list("f") == ["x"]


CLAIM = """
import sys
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.run_folder import RunFolder
run = RunFolder(sys.argv[1], "a")
print("ready", flush=True)
sys.stdin.readline()
won = []
for attempt in range(1, 11):
    try:
        run._living_owner = lambda: None  # on one host the older owner would be asked to end first
        run.claim_attempt(attempt, None, 2, 1)
        won.append(attempt)
    except UserError:
        pass
print(*won, flush=True)
"""


def test_of_two_processes_that_claim_at_once_exactly_one_wins(url):
    command = [sys.executable, "-c", CLAIM, url]
    racers = [subprocess.Popen(command, stdin=-1, stdout=-1, text=True, cwd=ROOT, env=os.environ) for _ in range(2)]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = [[int(number) for number in racer.communicate(timeout=60)[0].split()] for racer in racers]
    assert sorted(won[0] + won[1]) == list(range(1, 11)), won
    owners = {record.attempt: record.pid for record in RunFolder(url, "a").attempts()}
    assert owners == {n: racer.pid for racer, numbers in zip(racers, won, strict=True) for n in numbers}


def test_a_claim_is_repeated_by_its_process_and_by_nobody_else(run, monkeypatch):
    first = run.claim_attempt(1, None, 2, 1)
    assert run.claim_attempt(1, None, 2, 1) == first, "its answer may have been lost"
    with pytest.raises(UserError, match="claimed by another"):
        run.claim_attempt(1, CheckpointId(5, 1), 2, 1)
    monkeypatch.setattr(socket, "gethostname", lambda: "another-host")
    with pytest.raises(UserError, match="claimed by another"):
        run.claim_attempt(1, None, 2, 1)


def test_segments_are_numbered_and_a_second_writer_goes_on(run):
    for writer_number in range(2):
        writer = run.writer("metrics", 1)
        for line in range(3):
            writer.append(json.dumps([writer_number, line]))
            writer.flush()
        writer.close()
    lines = [json.loads(line) for line in read_segments(run.storage, "metrics/attempt-0001")]
    assert lines == [[w, n] for w in range(2) for n in range(3)]
    assert run.storage.list("metrics/attempt-0001")[0] == "segment-00000.jsonl"


def test_requests_are_numbered(run):
    for action in ("save", "stop", "save"):
        run.request(action)
    assert [(n, r["action"]) for n, r in run.requests(after=1)] == [(2, "stop"), (3, "save")]


# -- checkpoints --------------------------------------------------------------------------------------------------------
ELEMENTS = 6 * 2**20 // 2
"""Per rank: two blocks of hashes and several parts."""


def values(rank, step):
    return np.random.default_rng([rank, step]).standard_normal(2 * ELEMENTS).astype(np.float32)


def save(run, step, attempt=1, world_size=2):
    """What two ranks and a committer do; the manifest is last."""
    checkpoint = CheckpointId(step, attempt)
    tensor = Tensor((world_size * 2 * ELEMENTS,), {"master": "F32"})
    draft = Draft(1, "fp32", 8 * step, [], Scalars([step]), {"w": tensor}, {}, {})
    written = []
    for rank in range(world_size):
        key = FragmentKey("w", "master", rank * 2 * ELEMENTS, 2 * ELEMENTS, "F32")
        fragments = [(key, values(rank, step))]
        file = write_rank_file(run.storage, checkpoint, rank, world_size, fragments)
        digests = partial_digests(fragments)
        written.append(Written(checkpoint, rank, world_size, file, digests, draft if rank == 0 else None))
        assert run.checkpoints() == [c for c in run.checkpoints() if c != checkpoint], "no manifest, no checkpoint"
    commit(CheckpointConfig(keep_last=2), run, assemble(written), lambda: None)
    return checkpoint


def test_a_checkpoint_is_streamed_committed_and_read_by_byte_ranges(run):
    run.claim_attempt(1, None, 2, 1)
    checkpoint = save(run, 5)
    assert run.checkpoints() == [checkpoint]
    assert sorted(run.storage.list(checkpoint.folder)) == [
        "manifest.json",
        "rank-00000-of-00002.safetensors",
        "rank-00001-of-00002.safetensors",
    ]
    reader = CheckpointReader(run.storage, checkpoint)
    assert reader.manifest.rank_files[0].num_bytes > BLOCK_BYTES > 2 * PART_BYTES
    reader.check_blocks()
    across = reader.read("w", "master", 2 * ELEMENTS - 7, 14)
    expected = np.concatenate([values(0, 5)[-7:], values(1, 5)[:7]])
    assert np.array_equal(across, expected)


def test_old_checkpoints_are_deleted_and_a_damaged_one_is_walked_back_over(run):
    run.claim_attempt(1, None, 2, 1)
    for step in (5, 10, 15):
        save(run, step)
    assert [c.step for c in run.checkpoints()] == [10, 15]
    assert run.storage.list("checkpoints") == ["step-00000010", "step-00000015"], "nothing is left of the oldest"
    damaged = CheckpointId(15, 1).rank_file(1, 2)
    data = bytearray(run.storage.read(damaged))
    data[20] ^= 1
    run.storage.remove(damaged)
    run.storage.create(damaged, bytes(data))
    selection = select_checkpoint(run)
    assert selection.checkpoint == CheckpointId(10, 1) and selection.found == 2
    assert "header does not match" in selection.skipped[0][1]


def test_a_zombie_commits_nothing_past_the_start_of_its_successor(run):
    run.claim_attempt(1, None, 2, 1)
    save(run, 5)
    run.claim_attempt(2, CheckpointId(5, 1), 2, 1)
    with pytest.raises(Superseded):
        save(run, 10, attempt=1)
    assert [c.step for c in run.checkpoints()] == [5]


def test_a_folder_is_removed_with_all_in_it_and_nothing_else(run):
    storage: Storage = run.storage
    for name in ("x/a", "x/b/c", "xy/d"):
        storage.create(name, b"1")
    storage.remove("x")
    assert storage.list() == ["xy"] and storage.list("x") == [] and storage.exists("xy/d")
