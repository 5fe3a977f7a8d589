"""The roofline of a step."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given

from tests.trainer.sizing.models import llama, models, setup, setups
from zerofleet.trainer.sizing.pace import RECOMPUTE, Speeds, pace_of, slower_by

SPEEDS = Speeds(flops=1e14, memory_bytes=1e12, network_bytes=1e10)


def test_compute_is_palms_flops_over_the_ranks_speed():
    model, chosen = llama(), setup()
    tokens = chosen.global_batch_size * chosen.sequence_length
    per_token = 6 * model.matmul_parameters + 12 * 8 * 1024 * 512
    assert pace_of(model, chosen, SPEEDS).compute_s == pytest.approx(tokens * per_token / 8 / 1e14)


def test_checkpointing_computes_the_forward_twice():
    model, chosen = llama(), setup()
    plain, twice = (pace_of(model, replace(chosen, activation_checkpointing=on), SPEEDS) for on in (False, True))
    assert twice.compute_s == pytest.approx(RECOMPUTE * plain.compute_s)


@given(models, setups)
def test_the_bound_is_no_longer_than_the_sum(model, chosen):
    pace = pace_of(model, chosen, SPEEDS)
    assert 0 < pace.bound_s <= pace.step_s


@given(models, setups)
def test_twice_the_speed_takes_half_the_time(model, chosen):
    twice = Speeds(2 * SPEEDS.flops, 2 * SPEEDS.memory_bytes, 2 * SPEEDS.network_bytes, 2 * SPEEDS.host_bytes)
    assert pace_of(model, chosen, twice).step_s == pytest.approx(pace_of(model, chosen, SPEEDS).step_s / 2)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("keeps", [False, True])
def test_a_rate_that_was_measured_gives_its_own_seconds_again(checkpointing, keeps):
    """As `plan --calibrate` stores it: nothing that the measured steps did is reckoned with twice."""
    model, chosen = llama(), setup(on_gpu=False, zero_stage=2)
    chosen = replace(chosen, activation_checkpointing=checkpointing, keeps_freed_memory=keeps)
    seconds, batch = 30.0, chosen.batch
    tokens = batch.gradient_accumulation_steps * batch.micro_batch_size * chosen.sequence_length
    rate = tokens * model.flops_per_token(chosen.sequence_length) * slower_by(chosen) / seconds
    assert pace_of(model, chosen, Speeds(rate, 1e30, 1e30)).compute_s == pytest.approx(seconds)
