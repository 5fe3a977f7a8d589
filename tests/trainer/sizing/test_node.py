"""What a node holds, and what does not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given

from tests.trainer.sizing.models import CPU_NODE, GIB, GPU_NODE, llama, models, setup, setups
from zerofleet.trainer.sizing.node import (
    CONTEXT_BYTES,
    GIVEN_BACK_SHARE,
    RANK_BYTES_GIVING_BACK,
    RESERVE_SHARE,
    ZYGOTE_BYTES,
    footprint,
    load_bytes_of,
)


def test_imports_are_counted_once_and_ranks_each():
    model, chosen = llama(), setup(on_gpu=False, precision="fp32", nodes=1)
    two, four = (footprint(model, replace(chosen, ranks_per_node=n), CPU_NODE, False).host for n in (2, 4))
    assert two["imports, shared by the ranks"] == four["imports, shared by the ranks"] == ZYGOTE_BYTES
    assert four["ranks"] > two["ranks"]


def test_a_rank_that_gives_back_what_it_frees_holds_little_more_than_what_is_in_use():
    model = llama()
    kept = setup(on_gpu=False, nodes=1, ranks_per_node=2, zero_stage=3)
    keeps, gives = (
        footprint(model, replace(kept, keeps_freed_memory=keeps), CPU_NODE, False) for keeps in (True, False)
    )
    assert gives.memory == keeps.memory
    assert gives.bytes_per_rank == RANK_BYTES_GIVING_BACK + int((1 + GIVEN_BACK_SHARE) * gives.memory.peak.total_bytes)
    assert keeps.bytes_per_rank > 1.9 * gives.memory.peak.total_bytes


def test_a_gpus_memory_has_context_and_reserve_and_the_host_none_of_the_states():
    found, deeper = (footprint(llama(layers=layers), setup(), GPU_NODE, False) for layers in (8, 80))
    assert found.device_bytes == CONTEXT_BYTES + int((1 + RESERVE_SHARE) * found.memory.peak.total_bytes)
    assert found.host == deeper.host and found.device_bytes < deeper.device_bytes


def test_below_stage_3_every_rank_loads_the_whole_model_into_host_memory():
    model = llama(layers=80, hidden=8192)
    assert load_bytes_of(model, setup(zero_stage=2)) == 4 * model.parameters
    assert load_bytes_of(model, setup(zero_stage=3)) < 0.1 * model.parameters
    found = footprint(model, setup(zero_stage=2, ranks_per_node=8), GPU_NODE)
    assert "memory of a node while the model is loaded" in [shortage.what for shortage in found.shortages]


def test_snapshots_take_what_the_node_has_left_and_none_is_no_shortage():
    chosen = setup(on_gpu=False, precision="fp32", nodes=1, ranks_per_node=2, reduce_bucket=10**7)
    roomy = footprint(llama(), chosen, CPU_NODE)
    assert roomy.buffers.own == 3 and roomy.host["snapshots in /dev/shm"] > 0
    tight = footprint(llama(), chosen, replace(CPU_NODE, shm_bytes=64 * 2**20))
    assert tight.buffers.own == 0 and tight.fits


def test_a_shortage_says_what_and_how_much():
    small = replace(GPU_NODE, gpu_memory_bytes=2 * GIB)
    (shortage,) = footprint(llama(), setup(), small).shortages
    assert (shortage.what, shortage.limit_bytes) == ("device memory of a rank", 2 * GIB)
    assert shortage.needed_bytes == footprint(llama(), setup(), GPU_NODE).device_bytes


@given(models, setups)
def test_more_nodes_never_need_more_per_rank(model, chosen):
    node = GPU_NODE if chosen.on_gpu else CPU_NODE
    before, after = (footprint(model, each, node) for each in (chosen, replace(chosen, nodes=2 * chosen.nodes)))
    assert after.bytes_per_rank <= before.bytes_per_rank


@given(models, setups)
def test_parts_add_up_and_none_is_negative(model, chosen):
    found = footprint(model, chosen, GPU_NODE if chosen.on_gpu else CPU_NODE)
    assert all(size >= 0 for parts in (found.device, found.host) for size in parts.values())
    assert found.host_bytes == pytest.approx(max(sum(found.host.values()), found.load_bytes))
