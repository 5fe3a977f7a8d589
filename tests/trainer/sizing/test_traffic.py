"""Bytes that travel, against the ZeRO paper's volumes."""

from __future__ import annotations

import pytest
from hypothesis import given

from tests.trainer.sizing.models import llama, models, setup, setups
from zerofleet.trainer.sizing.traffic import traffic_of

ONE_MICRO_STEP = {"global_batch_size": 16, "micro_batch_size": 2}


@pytest.mark.parametrize(
    ("stage", "accumulation", "gradients", "weights"),
    [(0, 1, 2, 0), (1, 1, 2, 1), (2, 1, 2, 1), (3, 1, 1, 2), (1, 4, 2, 1), (2, 4, 8, 1), (3, 4, 4, 8)],
)
def test_volumes_are_those_of_ring_collectives(stage, accumulation, gradients, weights):
    """In units of (W - 1) / W of the parameters, gradients of 4 bytes and weights of 2: ZeRO, section 7, but all-reduced gradients."""
    model = llama()
    chosen = setup(zero_stage=stage, micro_batch_size=2, global_batch_size=16 * accumulation)
    found, once = traffic_of(model, chosen), model.parameters * 7 // 8
    assert found.gradients == pytest.approx(gradients * 4 * once, rel=1e-6)
    assert found.weights == pytest.approx(weights * 2 * once, rel=1e-6)


def test_the_papers_three_psi_at_stage_3():
    """With gradients as wide as weights: section 7.2.2."""
    model = llama()
    found = traffic_of(model, setup(zero_stage=3, precision="fp32", **ONE_MICRO_STEP))
    assert found.total_bytes == pytest.approx(3 * 4 * model.parameters * 7 / 8, rel=1e-6)


@given(models, setups)
def test_one_rank_sends_nothing(model, chosen):
    from dataclasses import replace

    assert traffic_of(model, replace(chosen, nodes=1, ranks_per_node=1)).total_bytes == 0
