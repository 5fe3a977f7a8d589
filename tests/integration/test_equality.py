"""The same run, whatever the ZeRO stage and the number of ranks: what every step was fed, and what it gave."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.ranks import job, run_attempt
from zerofleet.launch.audit import audit_run
from zerofleet.trainer.run_folder import RunFolder

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

STEPS = 20
MANY_RANKS = [(4, 1), (6, 2), (8, 3)]
"""World sizes and the stages that `make test` tries them at."""


@pytest.fixture(scope="module")
def reference(tmp_path_factory, tiny_corpus, tiny_cache):
    return outcome_of(tmp_path_factory.mktemp("reference"), tiny_corpus, tiny_cache, stage=1, world_size=2)


def outcome_of(folder, corpus, cache, stage, world_size) -> tuple[dict[int, float], list[dict[str, Any]]]:
    """Losses by step, and the ledger but for whose part was what. The audit has passed."""
    # 3 ranks do not divide 7 blocks, and 13 sequences do not fill blocks of 2. Some of 8 ranks are fed padding only.
    config = job(
        folder,
        corpus,
        train__steps=STEPS,
        train__learning_rate=3e-3,
        train__global_batch_size=13,
        train__zero_stage=stage,
        checkpoint__interval_steps=0,
    )
    outcome = run_attempt(config, cache, world_size)
    assert not outcome.errors, outcome.errors
    found = outcome.losses()
    assert sorted(found) == list(range(1, STEPS + 1))
    run = RunFolder(config.run.storage, config.run.name)
    assert audit_run(run).audit.is_exact
    lines = list(run.read("ledger"))
    assert all(len(line["rank_digests"]) == 4 * world_size for line in lines)
    return found, [{**line, "rank_digests": ""} for line in lines]


def assert_equal(found, reference) -> None:
    losses, ledger = found
    assert ledger == reference[1], "every step was fed the same positions and tokens"
    worst = max(abs(losses[step] - loss) / loss for step, loss in reference[0].items())
    assert worst <= 1e-4, f"relative difference {worst:.1e}"
    assert losses[STEPS] < losses[1] - 0.5, "it learns something, so equality means something"


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_order_and_losses_agree_over_stages_and_world_sizes(
    tmp_path, tiny_corpus, tiny_cache, reference, stage, world_size
):
    assert_equal(outcome_of(tmp_path, tiny_corpus, tiny_cache, stage, world_size), reference)


@pytest.mark.parametrize(("world_size", "stage"), MANY_RANKS)
def test_order_and_losses_agree_with_many_ranks(tmp_path, tiny_corpus, tiny_cache, reference, world_size, stage):
    assert_equal(outcome_of(tmp_path, tiny_corpus, tiny_cache, stage, world_size), reference)


@pytest.mark.long
@pytest.mark.parametrize(
    ("world_size", "stage"), [(w, s) for w in (4, 6, 8) for s in (0, 1, 2, 3) if (w, s) not in MANY_RANKS]
)
def test_order_and_losses_agree_with_many_ranks_at_every_stage(
    tmp_path, tiny_corpus, tiny_cache, reference, world_size, stage
):
    assert_equal(outcome_of(tmp_path, tiny_corpus, tiny_cache, stage, world_size), reference)


def test_a_second_run_is_bitwise_equal(tmp_path, tiny_corpus, tiny_cache, reference):
    assert outcome_of(tmp_path, tiny_corpus, tiny_cache, stage=1, world_size=2) == reference
