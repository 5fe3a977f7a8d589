"""Packed documents that cannot see each other: the same run, whatever the number of ranks."""

from __future__ import annotations

import pytest

from tests.support.ranks import job, run_attempt
from tests.trainer.data.corpora import quiet, write_corpus
from zerofleet.trainer.data.prepare import prepare

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Documents of some 30 and some 90 tokens, for sequences of 64."""
    folder = tmp_path_factory.mktemp("packed")
    write_corpus(folder / "short", 120, 10)
    write_corpus(folder / "long", 80, 40)
    for number, path in enumerate(sorted(folder.glob("*/*.txt"))):
        path.rename(folder / f"{number:03d}.txt")
    return folder


def run(folder, corpus, world_size, stage, **data):
    config = job(
        folder,
        corpus,
        data__packing="best_fit",
        data__sequence_length=64,
        train__global_batch_size=7,  # blocks of 2: the last one is padded, and one rank has a surplus block
        train__zero_stage=stage,
        checkpoint__interval_steps=0,
        **data,
    )
    outcome = run_attempt(config, prepare(config.data, config.run.seed, quiet), world_size)
    assert not outcome.errors, outcome.errors
    ledger = [(e.data["ledger"]["num_tokens"], e.data["ledger"]["digest"]) for e in outcome.of("step")]
    return outcome.losses(), [e.data["loss"] for e in outcome.of("eval")], ledger


@pytest.mark.parametrize("stage", [1, 3])
def test_the_losses_agree_over_world_sizes(tmp_path, corpus, stage):
    order = {"data__curriculum_stages": 4 if stage == 3 else 1}
    one, two = (run(tmp_path / str(n), corpus, n, stage, data__document_mask=True, **order) for n in (1, 2))
    assert two[0] == pytest.approx(one[0], rel=1e-5) and two[1] == pytest.approx(one[1], rel=1e-5)
    assert one[2] == two[2] and len(one[2]) == 6 and min(tokens for tokens, _ in one[2]) > 7 * 32
    assert one[1][-1] < one[1][0] - 0.5, "it learns something, so equality means something"
    unmasked = run(tmp_path / "unmasked", corpus, 1, stage, **order)
    assert unmasked[2] == one[2] and unmasked[0] != pytest.approx(one[0], rel=1e-4), (
        "the same tokens, otherwise attended to"
    )
