"""The same run, whatever the ZeRO stage and the number of ranks."""

from __future__ import annotations

import pytest

from tests.support.ranks import job, run_attempt

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

STEPS = 20


@pytest.fixture(scope="module")
def reference(tmp_path_factory, tiny_corpus, tiny_cache):
    return losses(tmp_path_factory.mktemp("reference"), tiny_corpus, tiny_cache, stage=1, world_size=2)


def losses(folder, corpus, cache, stage, world_size):
    # 3 ranks do not divide 7 blocks, and 13 sequences do not fill blocks of 2.
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
    return found


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_first_20_losses_agree_over_stages_and_world_sizes(
    tmp_path, tiny_corpus, tiny_cache, reference, stage, world_size
):
    found = losses(tmp_path, tiny_corpus, tiny_cache, stage, world_size)
    worst = max(abs(found[step] - reference[step]) / reference[step] for step in reference)
    assert worst <= 1e-4, f"relative difference {worst:.1e}"
    assert found[STEPS] < found[1] - 0.5, "it learns something, so equality means something"


def test_a_second_run_is_bitwise_equal(tmp_path, tiny_corpus, tiny_cache, reference):
    assert losses(tmp_path, tiny_corpus, tiny_cache, stage=1, world_size=2) == reference
