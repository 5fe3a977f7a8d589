"""A run whose ranks are killed, and whose size and ZeRO stage change, again and again at random: each position is fed once all the same."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.ranks import Plan, job, run_attempt
from tests.support.simulated_run import WORLD_SIZES
from zerofleet.launch.audit import audit_run
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.data.audit import spans
from zerofleet.trainer.run_folder import RunFolder, last_that_counts

pytestmark = pytest.mark.integration

Line = dict[str, Any]
SEED = "ZEROFLEET_TEST_SEED"
"""Repeats a drawn run."""


@pytest.mark.timeout(300)
def test_order_and_audit_over_3_kills(tmp_path, tiny_corpus, tiny_cache):
    killed_and_resized(tmp_path, tiny_corpus, tiny_cache, num_kills=3, num_steps=12, world_sizes=(1, 2, 3, 4))


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_order_and_audit_over_20_kills(tmp_path, tiny_corpus, tiny_cache):
    killed_and_resized(tmp_path, tiny_corpus, tiny_cache, num_kills=20, num_steps=60, world_sizes=WORLD_SIZES)


def killed_and_resized(
    folder: Path, corpus: Path, cache, num_kills: int, num_steps: int, world_sizes: tuple[int, ...]
) -> None:
    seed = int(os.environ.get(SEED, random.SystemRandom().randrange(2**32)))
    print(f"\n{SEED}={seed}")  # pytest shows it where the test fails
    draw = random.Random(seed)
    straight = job(folder / "straight", corpus, train__steps=num_steps, train__learning_rate=3e-3)
    outcome = run_attempt(straight, cache, 1)
    assert not outcome.errors, outcome.errors
    run, history = killed(folder / "killed", corpus, cache, num_kills, num_steps, world_sizes, draw)
    print("\n".join(history))

    assert counting(run) == counting(folder_of(straight)), "each step was fed the same positions and tokens"
    assert losses(run) == pytest.approx(losses(folder_of(straight)), rel=1e-4)
    found = audit_run(run).audit
    assert found.is_exact and found.proven_step == num_steps, list(map(str, found.findings))
    assert len(run.attempts()) == num_kills + 1

    counted = {s: span.attempt for span in spans(run.attempts(), num_steps) for s in range(span.first, span.last + 1)}
    for name, change in {"removed": removed, "doubled": doubled, "shifted": shifted}.items():
        step = draw.randint(1, num_steps)
        broken = sabotaged(run, folder / name, step, counted[step], change)
        found = audit_run(broken).audit
        assert found.proven_step == step - 1, (name, step, list(map(str, found.findings)))
        assert found.findings[0].attempt == counted[step]


def killed(
    folder: Path, corpus: Path, cache, num_kills: int, num_steps: int, world_sizes: tuple[int, ...], draw: random.Random
) -> tuple[RunFolder, list[str]]:
    """The run, and what happened to it."""
    config = job(folder, corpus, train__steps=num_steps, train__learning_rate=3e-3)
    history, run = [], folder_of(config)
    for kill in range(num_kills + 1):
        world_size, done = draw.choice(world_sizes), newest_checkpoint(run)
        is_last = kill == num_kills
        # On average every kill comes so late that the run is through with the last one, and some before any new checkpoint.
        step = done + draw.randint(1, max(1, 2 * (num_steps - done) // (num_kills + 1 - kill)))
        victim = None if is_last else (draw.randrange(world_size), min(step, num_steps))
        changes = {"zero_stage": draw.randrange(4), "micro_batch_size": draw.randint(1, 3)}
        attempt = config.model_copy(update={"train": config.train.model_copy(update=changes)})
        outcome = run_attempt(attempt, cache, world_size, Plan(kill_at=victim), timeout_s=150)
        assert (-9 in outcome.exit_codes) != is_last, (
            outcome.exit_codes,
            outcome.errors,
        )  # survivors may report a lost peer
        assert not (is_last and outcome.errors), outcome.errors
        history.append(
            f"attempt {kill + 1}: {world_size} ranks, {changes}, from step {done}, kill (rank, step) {victim}"
        )
    return run, history


def folder_of(config: TrainConfig) -> RunFolder:
    assert config.run.name is not None
    return RunFolder(config.run.storage, config.run.name)


def newest_checkpoint(run: RunFolder) -> int:
    return max((checkpoint.step for checkpoint in run.checkpoints()), default=0)


def losses(run: RunFolder) -> dict[int, float]:
    return {record["step"]: record["data"]["loss"] for record in run.read("metrics") if record["kind"] == "step"}


def counting(run: RunFolder) -> list[Line]:
    """What every step that counts was fed, without who fed it."""
    attempts = run.attempts()
    limits = {record.attempt: last_that_counts(record.attempt, attempts) for record in attempts}
    lines = [line for line in run.read("ledger") if (limit := limits[line["attempt"]]) is None or line["step"] <= limit]
    kept = ("step", "silo", "ranges", "num_sequences", "num_tokens", "digest", "data")
    return [{name: line[name] for name in kept} for line in sorted(lines, key=lambda line: line["step"])]


def sabotaged(run: RunFolder, folder: Path, step: int, attempt: int, change: Callable[[Line], list[Line]]) -> RunFolder:
    """A copy of the run in whose ledger the one line of a step that counts is replaced."""
    shutil.copytree(run.storage.local_path(), folder / run.name)
    copy = RunFolder(str(folder), run.name)
    for segment in copy.storage.local_path("ledger").glob("*/segment-*.jsonl"):
        lines = [json.loads(line) for line in segment.read_text().splitlines()]
        changed = [
            new
            for line in lines
            for new in (change(line) if (line["step"], line["attempt"]) == (step, attempt) else [line])
        ]
        segment.write_text("".join(json.dumps(line) + "\n" for line in changed))
    return copy


def removed(line: Line) -> list[Line]:
    return []


def doubled(line: Line) -> list[Line]:
    return [line, line]


def shifted(line: Line) -> list[Line]:
    return [{**line, "ranges": [[start + 1, end + 1] for start, end in line["ranges"]]}]
