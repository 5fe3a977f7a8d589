"""Cutting an export into weight files, walking back to a checkpoint that can be read, and where an export may go."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from transformers import LlamaConfig

from tests.support.checkpoints import VALUES, written
from zerofleet.trainer.checkpoint import export as exporting
from zerofleet.trainer.checkpoint.commit import assemble, commit
from zerofleet.trainer.checkpoint.export import MARKER, export, plan_shards, publish_model_files
from zerofleet.trainer.config import CheckpointConfig
from zerofleet.trainer.errors import CheckpointUnusable, NotFoundError, StorageError, UserError
from zerofleet.trainer.run_folder import CheckpointId, RunFolder

pytestmark = pytest.mark.timeout(60)
STEPS = (4, 8)
EXPORTED = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", MARKER}


def with_checkpoints(storage: str, tokenizer: Path) -> RunFolder:
    run = RunFolder(storage, "r")
    run.create("{}")
    run.claim_attempt(1, None, 2, 1)
    for step in STEPS:
        files = [written(run, CheckpointId(step, 1), rank) for rank in (1, 0)]
        commit(CheckpointConfig(keep_last=9), run, assemble(files), lambda: None)
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    publish_model_files(run, LlamaConfig(hidden_size=8, num_attention_heads=2, vocab_size=8), tokenizer)
    return run


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """A run with checkpoints of steps 4 and 8, and a model folder."""
    return with_checkpoints(str(tmp_path / "runs"), tmp_path / "tokenizer")


def damage(run: RunFolder, step: int) -> None:
    path = run.storage.local_path(CheckpointId(step, 1).rank_file(1, 2))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def step_of(folder: Path) -> int:
    return json.loads((folder / MARKER).read_text())["step"]


def test_shards_stay_under_the_limit_and_a_larger_tensor_stands_alone():
    sizes = {"a": 4, "b": 5, "c": 3, "d": 30, "e": 1}
    assert plan_shards(sizes, 10) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert plan_shards(sizes, 100) == [list(sizes)]


# -- what is exported ------------------------------------------------------------------------------------------------
def test_a_damaged_block_is_walked_back_and_said(run, tmp_path):
    damage(run, 8)
    said: list[str] = []
    export(run, None, tmp_path / "out", "fp32", said.append)
    assert step_of(tmp_path / "out") == 4
    assert load_file(tmp_path / "out/model.safetensors")["w"].ravel().tolist() == VALUES.tolist()
    assert len(said) == 2 and "step 8 (attempt 1) was skipped: rank-00001-of-00002.safetensors: block 0" in said[0]
    assert said[1] == "the checkpoint of step 4 (attempt 1) is exported instead"


def test_nothing_is_said_of_the_newest_when_it_is_whole(run, tmp_path):
    said: list[str] = []
    export(run, None, tmp_path / "out", "fp32", said.append)
    assert (step_of(tmp_path / "out"), said) == (8, [])


def test_the_step_that_was_asked_for_is_not_replaced_by_another(run, tmp_path):
    damage(run, 8)
    with pytest.raises(CheckpointUnusable, match=r"block 0 .* or export another step \(there are 4\)"):
        export(run, CheckpointId(8, 1), tmp_path / "out", "fp32")
    assert not (tmp_path / "out").exists()


def test_all_checkpoints_damaged(run, tmp_path):
    for step in STEPS:
        damage(run, step)
    with pytest.raises(StorageError, match=r"step 8 \(attempt 1\): .*step 4 \(attempt 1\): .*: restore their files"):
        export(run, None, tmp_path / "out", "fp32")
    assert not (tmp_path / "out").exists()


def test_a_run_without_checkpoints(run, tmp_path):
    run.storage.remove("checkpoints")
    with pytest.raises(NotFoundError, match="no checkpoint that can be exported"):
        export(run, None, tmp_path / "out", "fp32")


def test_a_run_whose_ranks_have_not_begun(run, tmp_path):
    for folder in ("checkpoints", "model"):
        run.storage.remove(folder)
    with pytest.raises(NotFoundError, match="no checkpoint that can be exported"):
        export(run, None, tmp_path / "out", "fp32")


def test_the_models_files_are_gone(run, tmp_path):
    run.storage.remove("model")
    with pytest.raises(StorageError, match="/model is gone, .*: restore its files"):
        export(run, None, tmp_path / "out", "fp32")
    assert not (tmp_path / "out").exists()


# -- where it goes ---------------------------------------------------------------------------------------------------
def test_a_folder_with_files_like_an_exports_own_is_refused(run, tmp_path):
    mine = tmp_path / "project"
    mine.mkdir()
    for name in ("config.json", "requirements.txt", "notes.txt"):
        (mine / name).write_text("mine")
    with pytest.raises(
        UserError, match=r"holds 3 .* no export \(config.json, notes.txt, requirements.txt\).* new folder"
    ):
        export(run, None, mine, "fp32")
    assert {path.name: path.read_text() for path in mine.iterdir()} == dict.fromkeys(
        ("config.json", "requirements.txt", "notes.txt"), "mine"
    )


def test_a_file_beside_an_export_is_kept_by_refusing(run, tmp_path):
    out = tmp_path / "out"
    export(run, None, out, "fp32")
    (out / "README.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds 1 .*README.txt"):
        export(run, None, out, "bf16")
    assert (out / "README.txt").read_text() == "mine" and names(out) == EXPORTED | {"README.txt"}


@pytest.mark.parametrize("content", ["", "[]", '{"files": 5}', '{"files": ["notes.txt", "../notes.txt"]}'])
def test_a_marker_that_is_not_ours_gives_nothing_away(run, tmp_path, content):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    (out / MARKER).write_text(content)
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"thesis.txt"):
        export(run, None, out, "fp32")
    (out / "thesis.txt").unlink()
    if content.startswith('{"files": ['):
        export(run, None, out, "fp32")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_files_that_only_the_older_export_had_go_with_it(run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(exporting, "plan_shards", lambda sizes, limit: [list(sizes), []])
    export(run, None, out, "fp32")
    assert "model-00001-of-00002.safetensors" in names(out)
    monkeypatch.undo()
    export(run, CheckpointId(4, 1), out, "fp32")
    assert names(out) == EXPORTED and step_of(out) == 4


def test_the_working_folder_of_a_shell_stays_the_same_folder(run, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    inode = here.stat().st_ino
    for _ in range(2):
        assert export(run, None, Path("."), "fp32") == str(here)
        assert here.stat().st_ino == inode and set(os.listdir(".")) == EXPORTED


def test_a_link_stays_a_link(run, tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "link"
    link.symlink_to("disk")
    assert export(run, None, link, "fp32") == str(link)
    assert link.is_symlink() and names(tmp_path / "disk") == EXPORTED


@pytest.mark.parametrize("target", ["file", "file/sub", "file/sub/sub"])
def test_a_file_in_the_way_is_named(run, tmp_path, target):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"/file is a file: name a folder"):
        export(run, None, tmp_path / target, "fp32")


def test_what_the_system_refuses_names_the_setting_to_change(run, tmp_path):
    with pytest.raises(StorageError, match="File name too long"):
        export(run, None, tmp_path / ("x" * 300), "fp32")
    with pytest.raises(StorageError, match="exporting to /proc/out failed"):
        export(run, None, Path("/proc/out"), "fp32")


def test_the_export_of_a_remote_run_lies_with_it_and_leaves_nothing_here(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    remote = with_checkpoints(f"memory:/{tmp_path}", tmp_path / "tokenizer")
    assert export(remote, None, None, "fp32") == f"{remote.storage.url}/export"
    assert set(remote.storage.list("export")) == EXPORTED
    assert list((tmp_path / "tmp").iterdir()) == []


KILLED = """
import os, signal, sys
from zerofleet.trainer.checkpoint import export as exporting
from zerofleet.trainer.run_folder import RunFolder
exporting._write_marker = lambda *given: os.kill(os.getpid(), signal.SIGKILL)
exporting.export(RunFolder(sys.argv[1], "r"), None, None, "fp32")
"""


@pytest.mark.integration
def test_what_a_killed_export_leaves_goes_with_the_next(run):
    storage = run.storage.url.rpartition("/")[0]
    killed = subprocess.run([sys.executable, "-c", KILLED, storage], capture_output=True, timeout=50)
    assert killed.returncode == -signal.SIGKILL
    before = {path.name for path in run.storage.local_path().rglob("*")}
    assert "model.safetensors" in before and not run.storage.exists("export/config.json")
    export(run, None, None, "fp32")
    assert names(run.storage.local_path("export")) == EXPORTED
    assert names(run.storage.local_path()) == {"attempts", "checkpoints", "export", "job.yaml", "model"}


def test_two_exports_into_one_folder_take_turns(run, tmp_path, monkeypatch):
    out, is_building, may_go_on = tmp_path / "out", threading.Event(), threading.Event()
    write_marker = exporting._write_marker

    def wait_first(*given) -> None:
        if not is_building.is_set():
            is_building.set()
            assert may_go_on.wait(30)
        write_marker(*given)

    monkeypatch.setattr(exporting, "_write_marker", wait_first)
    first = threading.Thread(target=export, args=(run, CheckpointId(4, 1), out, "fp32"))
    second = threading.Thread(target=export, args=(run, CheckpointId(8, 1), out, "fp32"))
    first.start()
    assert is_building.wait(30)
    second.start()
    second.join(0.5)
    assert second.is_alive() and not (out / "config.json").exists()
    may_go_on.set()
    first.join(30)
    second.join(30)
    assert step_of(out) == 8 and names(out) == EXPORTED
