"""Which checkpoint of another run a new one begins with."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.support.checkpoints import written
from zerofleet.trainer.checkpoint.commit import assemble, commit
from zerofleet.trainer.config import CheckpointConfig, RunConfig
from zerofleet.trainer.errors import NotFoundError, UserError
from zerofleet.trainer.init_from import pin_init_from, resolve_init_from
from zerofleet.trainer.run_folder import CheckpointId, RunFolder

STEPS = (2, 4, 6)


@pytest.fixture
def storage(tmp_path) -> str:
    """Holds the run `source` with three checkpoints."""
    run = RunFolder(str(tmp_path), "source")
    run.create("{}")
    run.claim_attempt(1, None, 2, 1)
    for step in STEPS:
        files = [written(run, CheckpointId(step, 1), rank) for rank in (1, 0)]
        commit(CheckpointConfig(keep_last=9), run, assemble(files), lambda: None)
    return str(tmp_path)


def damage(storage: str, step: int) -> None:
    """Flips a bit that sizes and headers know nothing of."""
    path = Path(storage, "source", CheckpointId(step, 1).rank_file(1, 2))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def pin(storage: str, init_from: str) -> str | None:
    return pin_init_from(
        RunFolder(storage, "new"), RunConfig.model_validate({"name": "new", "storage": storage, "init_from": init_from})
    )


def test_the_newest_that_is_whole_is_pinned_and_the_others_are_said(storage, caplog):
    assert pin(storage, "source") == f"{storage}/source@6"
    assert not caplog.records
    damage(storage, 6)
    damage(storage, 4)
    with caplog.at_level(logging.WARNING):
        assert pin(storage, "source") == f"{storage}/source@2"
    (record,) = caplog.records
    assert "step 2 is taken" in record.message and "step 6 (attempt 1): rank-00001" in record.message


def test_a_damaged_step_that_was_named_is_refused_once_with_the_remedy(storage):
    damage(storage, 4)
    with pytest.raises(
        UserError, match=r"'source@4': the checkpoint of step 4 .*block 0 .* another step .*others: 2, 6"
    ):
        pin(storage, "source@4")
    assert pin(storage, "source@6") == f"{storage}/source@6"


def test_a_source_with_damaged_checkpoints_only(storage):
    for step in STEPS:
        damage(storage, step)
    with pytest.raises(NotFoundError, match=r"no checkpoint that can be used \(step 6 .*step 2 .*: restore its files"):
        pin(storage, "source")


def test_what_was_pinned_is_not_read_again(storage):
    new = RunFolder(storage, "new")
    new.claim_attempt(1, None, 2, 1, f"{storage}/source@6")
    damage(storage, 6)
    assert pin(storage, "source") == f"{storage}/source@6"


@pytest.mark.parametrize("step", ["", "newest", "-1", "²"])
def test_what_follows_the_at_sign_is_a_step(storage, step):
    with pytest.raises(UserError, match=r"is not a step; write RUN@STEP, for example source@1000, or source alone"):
        resolve_init_from(f"source@{step}", storage)


def test_an_at_sign_within_a_path_is_no_step(storage, tmp_path):
    (tmp_path / "a@b").mkdir()
    (tmp_path / "source").rename(tmp_path / "a@b/source")
    run, checkpoint = resolve_init_from(f"{tmp_path}/a@b/source", storage)
    assert (run.name, checkpoint.step) == ("source", 6)
    assert resolve_init_from(f"{tmp_path}/a@b/source@2", storage)[1].step == 2
