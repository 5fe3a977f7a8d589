"""`zerofleet export`: what it says, and the exit code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from transformers import LlamaConfig

from tests.support.checkpoints import written
from zerofleet.launch import cli
from zerofleet.launch.config import load_job
from zerofleet.trainer.checkpoint.commit import assemble, commit
from zerofleet.trainer.checkpoint.export import publish_model_files
from zerofleet.trainer.config import CheckpointConfig
from zerofleet.trainer.run_folder import CheckpointId, RunFolder

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def run(recipe, tmp_path) -> RunFolder:
    """Run `a` with checkpoints of steps 1 and 2, of which 2 has a flipped bit."""
    run = RunFolder(os.environ["ZEROFLEET_STORAGE"], "a")
    run.create(load_job("recipe.yaml", ["run.name=a"]).to_yaml())
    run.claim_attempt(1, None, 2, 1)
    for step in (1, 2):
        files = [written(run, CheckpointId(step, 1), rank) for rank in (1, 0)]
        commit(CheckpointConfig(keep_last=9), run, assemble(files), lambda: None)
    (tmp_path / "tokenizer").mkdir()
    publish_model_files(run, LlamaConfig(hidden_size=8, num_attention_heads=2, vocab_size=8), tmp_path / "tokenizer")
    path = run.storage.local_path(CheckpointId(2, 1).rank_file(1, 2))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return run


def test_a_skipped_checkpoint_is_said_beside_the_path(run, capsys):
    assert cli.main(["export", "a", "--output", "out"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{Path('out').absolute()}\n"
    first, second = err.splitlines()
    assert first.startswith(
        "warning: the checkpoint of step 2 (attempt 1) was skipped: rank-00001-of-00002.safetensors"
    )
    assert second == "warning: the checkpoint of step 1 (attempt 1) is exported instead"


def test_a_damaged_step_that_was_asked_for_names_the_others(run, capsys):
    assert cli.main(["export", "a", "--step", "2", "--output", "out"]) == 1
    assert "restore its files, or export another step (there are 1)" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["recipe.yaml", "recipe.yaml/sub", "."])
def test_a_target_that_cannot_be_is_one_line(run, capsys, target):
    assert cli.main(["export", "a", "--output", target]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.endswith(("for the export\n", "Name a new folder\n"))
