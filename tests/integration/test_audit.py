"""The audit of real runs: it passes on what is right, whatever happened to them, and fails on every kind of sabotage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.ranks import Outcome, Plan, job, run_attempt
from zerofleet.launch.audit import audit_run
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.run_folder import RunFolder

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

Line = dict[str, Any]


def folder_of(config: TrainConfig) -> RunFolder:
    return RunFolder(config.run.storage, config.run.name)


def good(outcome: Outcome) -> Outcome:
    assert not outcome.errors, outcome.errors
    return outcome


@pytest.fixture(scope="module")
def resized(tmp_path_factory, tiny_corpus, tiny_cache) -> RunFolder:
    """2 ranks, stopped after step 4; 3 ranks at stage 3, killed in step 8; finished by 1 rank from step 6."""
    folder = tmp_path_factory.mktemp("resized")
    config = job(folder, tiny_corpus, train__steps=10)
    good(run_attempt(config, tiny_cache, 2, Plan(stop_after=4)))
    stage_3 = config.model_copy(
        update={"train": config.train.model_copy(update={"zero_stage": 3, "micro_batch_size": 1})}
    )
    run_attempt(stage_3, tiny_cache, 3, Plan(kill_at=(1, 8)))
    good(run_attempt(config, tiny_cache, 1))
    run = folder_of(config)
    assert [record.start_step for record in run.attempts()] == [0, 4, 6]
    return run


def test_a_run_that_was_stopped_killed_and_resized_is_exact(resized):
    found = audit_run(resized)
    assert found.audit.is_exact, list(map(str, found.audit.findings))
    assert (found.audit.proven_step, found.audit.num_positions, found.audit.num_repeated) == (10, 80, 1)


def test_a_run_that_is_only_stopped_is_proven_up_to_there(tmp_path, tiny_corpus, tiny_cache):
    config = job(tmp_path, tiny_corpus)
    good(run_attempt(config, tiny_cache, 2, Plan(stop_after=3)))
    found = audit_run(folder_of(config))
    assert found.audit.is_exact and (found.audit.proven_step, found.job.train.steps) == (3, 6)


@pytest.mark.parametrize(("rank", "world_size"), [(0, 2), (1, 2), (2, 3)])
def test_a_rank_that_was_fed_one_wrong_sample_is_named(tmp_path, tiny_corpus, tiny_cache, rank, world_size):
    """Its counts are right, no rank notices, and the run finishes."""
    config = job(tmp_path, tiny_corpus)
    good(run_attempt(config, tiny_cache, world_size, Plan(stop_after=2)))
    good(run_attempt(config, tiny_cache, world_size, Plan(wrong_sample_at=(rank, 5))))
    found = audit_run(folder_of(config))
    (finding,) = found.audit.findings
    assert (finding.kind, finding.first_step, finding.last_step) == ("data", 5, 5)
    assert (finding.attempt, finding.ranks) == (2, (rank,))
    assert found.audit.proven_step == 4


def sabotaged(run: RunFolder, folder: Path, change: Callable[[list[Line]], list[Line]]) -> RunFolder:
    """A copy of the run whose ledger is another."""
    shutil.copytree(run.storage.local_path(), folder / run.name)
    copy = RunFolder(str(folder), run.name)
    for segment in copy.storage.local_path("ledger").glob("*/segment-*.jsonl"):
        lines = [json.loads(line) for line in segment.read_text().splitlines()]
        segment.write_text("".join(json.dumps(line) + "\n" for line in change(lines)))
    return copy


def removed(step: int) -> Callable[[list[Line]], list[Line]]:
    return lambda lines: [line for line in lines if line["step"] != step]


def doubled(step: int) -> Callable[[list[Line]], list[Line]]:
    return lambda lines: [again for line in lines for again in [line] * (2 if line["step"] == step else 1)]


def shifted(step: int) -> Callable[[list[Line]], list[Line]]:
    return lambda lines: [
        {**line, "ranges": [[start + 1, end + 1] for start, end in line["ranges"]]} if line["step"] == step else line
        for line in lines
    ]


def of_attempt(step: int, attempt: int) -> Callable[[list[Line]], list[Line]]:
    return lambda lines: [{**line, "attempt": attempt} if line["step"] == step else line for line in lines]


@pytest.mark.parametrize(
    ("change", "kinds", "step", "attempt"),
    [
        (removed(3), {"gap"}, 3, 1),
        (removed(10), {"gap"}, 10, 3),
        (doubled(5), {"repeat"}, 5, 2),
        (shifted(5), {"gap", "repeat", "positions"}, 5, 2),
        (shifted(10), {"gap", "positions"}, 10, 3),
        (of_attempt(9, 1), {"gap"}, 9, 3),
        (of_attempt(3, 3), {"gap", "attempt"}, 3, None),
        (of_attempt(3, 4), {"gap", "attempt"}, 3, None),
    ],
)
def test_sabotage_of_the_ledger_is_found(resized, tmp_path, change, kinds, step, attempt):
    found = audit_run(sabotaged(resized, tmp_path, change)).audit
    assert {finding.kind for finding in found.findings} == kinds, list(map(str, found.findings))
    assert {finding.first_step for finding in found.findings} == {step}
    assert attempt is None or {finding.attempt for finding in found.findings} == {attempt}
    assert found.proven_step == step - 1
