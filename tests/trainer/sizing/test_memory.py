"""Bytes of a rank against the formulas of ZeRO and of DeepSpeed, and what must hold for any model."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.sizing.models import llama, models, setup, setups
from zerofleet.trainer.sizing.memory import activation_bytes, gradients_kept, rank_memory, states_of


def per_parameter(stage: int, precision: str = "bf16", **changes) -> tuple[float, float]:
    """States and gradients of a rank of 8, in bytes per parameter."""
    model, chosen = llama(), setup(zero_stage=stage, precision=precision, **changes)
    device, _ = states_of(model, chosen)
    return sum(device.values()) / model.parameters, gradients_kept(model, chosen) / model.parameters


@pytest.mark.parametrize(
    ("stage", "states", "gradients"),
    [(0, 2 + 12, 2), (1, 2 + 12 / 8, 2), (2, 2 + 12 / 8, 2 / 8), (3, 14 / 8, 2 / 8)],
)
def test_states_are_those_of_the_zero_paper_and_gradients_twice_as_wide(stage, states, gradients):
    """Rajbhandari et al. 2020, figure 1, with K = 12 and 8 ranks; zerofleet accumulates in fp32 where the stage partitions."""
    found, kept = per_parameter(stage)
    assert found == pytest.approx(states, rel=1e-6)
    assert kept == pytest.approx(gradients * (2 if stage else 1), rel=1e-6)


def test_stage_3_is_what_deepspeeds_estimator_says():
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

    _, device, layer = estimate_zero3_model_states_mem_needs(10**9, 0, 4, 2, cpu_offload=False)
    assert sum(per_parameter(3)) == pytest.approx((device - layer) / 10**9)


def test_stage_2_is_what_deepspeeds_estimator_says_without_its_16_bit_gradients():
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    _, device = estimate_zero2_model_states_mem_needs(10**9, 4, 2, cpu_offload=False)
    assert sum(per_parameter(2)) == pytest.approx(device / 10**9 - 2 / 8)


@pytest.mark.parametrize(("stage", "states"), [(0, 12), (1, 4 + 12 / 8), (2, 4 + 12 / 8), (3, 16 / 8)])
def test_in_fp32_partitioned_stages_keep_masters_too(stage, states):
    assert per_parameter(stage, "fp32")[0] == pytest.approx(states, rel=1e-6)


def test_offload_moves_states_from_the_device_to_the_host():
    model, plain = llama(), setup(zero_stage=3)
    offloaded = replace(plain, offload_optimizer=True, offload_param=True)
    here, _ = states_of(model, plain)
    left, host = states_of(model, offloaded)
    assert left == {}
    # One buffer where micro-steps are added up, one that the optimizer reads.
    assert host == {**here, "gradients": 2 * gradients_kept(model, plain)}


@pytest.mark.parametrize(
    ("precision", "accumulation", "device", "host"),
    [
        ("fp32", 1, 0, 4 + 4),  # the optimizer's gradients, and room for the updated weights
        ("fp32", 2, 0, 4 + 4 + 4),  # and the sum of micro-steps
        ("bf16", 2, 4, 4 + 2),  # which in 16 bits is made on the device
    ],
)
def test_stage_2_offloads_gradients_too(precision, accumulation, device, host):
    model = llama()
    chosen = setup(zero_stage=2, precision=precision, offload_optimizer=True)
    chosen = replace(chosen, global_batch_size=accumulation * chosen.micro_batch_size * chosen.world_size)
    part = chosen.partition(model.parameters)
    assert gradients_kept(model, chosen) == device * part
    _, offloaded = states_of(model, chosen)
    largest = chosen.element_bytes * model.largest_parameter
    assert offloaded["gradients"] + offloaded["buffers"] == host * part + largest


def test_sums_of_bf16_at_stage_1_take_no_memory():
    """trainer/bf16_gradients.py"""
    model, chosen = llama(), setup(zero_stage=1)
    one_micro_step = replace(chosen, global_batch_size=chosen.micro_batch_size * chosen.world_size)
    assert rank_memory(model, one_micro_step).moments[0].parts["gradients"] == 4 * model.parameters
    _, reduction, step = rank_memory(model, chosen).moments
    assert reduction.parts["buckets"] == 0
    assert reduction.total_bytes == step.total_bytes == sum(states_of(model, chosen)[0].values()) + 4 * model.parameters
    _, in_fp32, _ = rank_memory(model, replace(chosen, precision="fp32")).moments
    assert in_fp32.parts["buckets"] > 0


def test_stage_2_in_fp32_holds_a_micro_steps_gradients_beside_the_sum():
    model = llama()
    chosen = replace(
        setup(zero_stage=2, precision="fp32"), micro_batch_size=1, sequence_length=16, reduce_bucket=5_000_000
    )
    one, two = (replace(chosen, global_batch_size=count * chosen.world_size) for count in (1, 2))
    parts = [rank_memory(model, each).moments[1].parts for each in (one, two)]
    kept = 4 * chosen.partition(model.parameters)
    assert [each["gradients"] for each in parts] == [kept, 2 * kept]
    assert parts[1]["activations"] == 0 < parts[0]["activations"], "they are gone when all gradients are there"


@given(models, setups)
def test_more_nodes_never_need_more_memory_per_rank(model, chosen):
    more = replace(chosen, nodes=2 * chosen.nodes)
    assert rank_memory(model, more).peak.total_bytes <= rank_memory(model, chosen).peak.total_bytes


@given(models, setups)
def test_a_larger_micro_batch_never_needs_less(model, chosen):
    larger = replace(chosen, micro_batch_size=2 * chosen.micro_batch_size)
    assert activation_bytes(model, larger) == 2 * activation_bytes(model, chosen)


@given(models, setups)
def test_a_smaller_bucket_never_needs_more(model, chosen):
    smaller = replace(chosen, reduce_bucket=chosen.reduce_bucket // 2)
    before, after = (rank_memory(model, each) for each in (chosen, smaller))
    if chosen.activation_checkpointing:  # else activations that are alive while gradients travel may outweigh it
        assert after.peak.total_bytes <= before.peak.total_bytes + activation_bytes(model, chosen)


@settings(max_examples=50)
@given(models.filter(lambda model: model.num_layers > 2), setups, st.booleans())
def test_checkpointing_never_keeps_more(model, chosen, on_gpu):
    plain = replace(chosen, activation_checkpointing=False, on_gpu=on_gpu)
    assert activation_bytes(model, replace(plain, activation_checkpointing=True)) < activation_bytes(model, plain)


@pytest.mark.parametrize(
    ("precision", "on_gpu", "plain", "tokens", "expected"),
    [
        # One chunk: the logits and the gradient of the output embedding. V = 1000, H = 64.
        ("bf16", False, True, 512, 2 * (512 * 1000 + 1000 * 64) + 2 * 2**20),
        # Several: 64 MiB of logits, and the gradient in fp32 too.
        ("bf16", False, True, 2**17, 64 * 2**20 + 6 * 1000 * 64 + 2 * 2**20),
        ("fp32", True, True, 2**18, 512 * 2**20 + 8 * 1000 * 64 + 256 * 2**20),
        # Whole ones: 12 bytes each.
        ("fp16", False, True, 512, 12 * 512 * 1000),
        ("bf16", False, False, 512, 12 * 512 * 1000),
    ],
)
def test_logits_are_whole_or_in_chunks(precision, on_gpu, plain, tokens, expected):
    model = replace(llama(), vocabulary=1000, hidden=64, working_elements=0, returns_plain_logits=plain)
    chosen = setup(precision=precision, on_gpu=on_gpu, micro_batch_size=1, sequence_length=tokens)
    moment = rank_memory(model, chosen).moments[0]
    assert moment.parts["logits and loss"] == expected


def test_the_gradient_of_a_tied_embedding_travels_when_nothing_else_is_gathered():
    model = llama(layers=1, vocabulary=128256)
    chosen = setup(zero_stage=3, reduce_bucket=5_000_000, micro_batch_size=1, sequence_length=16)
    assert model.largest_parameter > chosen.reduce_bucket and not model.ties_embeddings
    tied = replace(model, matmul_parameters=model.parameters)
    assert tied.ties_embeddings
    untied, own = (rank_memory(each, chosen).moments[1].parts for each in (model, tied))
    assert own["gathered weights"] == 2 * model.largest_parameter < untied["gathered weights"]
    assert own["activations"] == 0 and own["buckets"] == untied["buckets"]
