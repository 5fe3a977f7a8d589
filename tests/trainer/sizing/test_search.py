"""What is recommended fits and trains the same; where nothing fits, what is named does, and nothing nearer."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.trainer.sizing.models import CPU_NODE, GIB, GPU_NODE, llama, models, setup, setups
from zerofleet.trainer.sizing.node import Node, footprint
from zerofleet.trainer.sizing.search import candidates, changes, nearest, recommend, relative_step_s

SLOW = settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])


def node_of(on_gpu: bool, memory_gib: int = 256, gpu_gib: int = 80) -> Node:
    return replace(
        GPU_NODE if on_gpu else CPU_NODE, memory_bytes=memory_gib * GIB, gpu_memory_bytes=gpu_gib * GIB * on_gpu
    )


@SLOW
@given(models, setups, st.sampled_from([16, 64, 1024]), st.sampled_from([16, 80]))
def test_what_is_recommended_fits_by_its_own_plan(model, chosen, memory_gib, gpu_gib):
    node = node_of(chosen.on_gpu, memory_gib, gpu_gib)
    found = recommend(model, chosen, node)
    if found is None:
        assert not any(footprint(model, varied, node, False).fits for varied in candidates(chosen))
    else:
        assert footprint(model, found.setup, node, found.takes_snapshots).fits


@SLOW
@given(models, setups)
def test_what_is_recommended_trains_the_same_on_the_same_nodes(model, chosen):
    found = recommend(model, chosen, node_of(chosen.on_gpu, 1024))
    if found is not None:
        assert not changes(chosen, found.setup).keys() & {
            *("precision", "sequence_length", "global_batch_size", "nodes", "ranks_per_node", "on_gpu")
        }


@SLOW
@given(models, setups)
def test_what_is_recommended_is_no_slower_than_the_jobs_own_where_that_fits(model, chosen):
    node = node_of(chosen.on_gpu, 1024)
    found = recommend(model, chosen, node)
    if footprint(model, chosen, node).fits:
        assert found is not None and found.step_s <= 1.03 * relative_step_s(model, chosen, node)


@SLOW
@given(models, setups)
def test_more_memory_never_makes_it_slower(model, chosen):
    small, large = (recommend(model, chosen, node_of(chosen.on_gpu, gib, gib)) for gib in (32, 64))
    if small is not None and small.takes_snapshots:
        assert large is not None and large.step_s <= 1.03 * small.step_s


def test_a_job_that_is_good_as_it_is_is_left_alone():
    chosen = setup(on_gpu=False, precision="fp32", nodes=1, ranks_per_node=2, zero_stage=1, global_batch_size=16)
    model = llama(layers=2, hidden=256, vocabulary=1024)
    best = recommend(model, chosen, CPU_NODE)
    again = recommend(model, best.setup, CPU_NODE)
    assert again.setup == best.setup


def test_what_trains_otherwise_or_slower_is_recommended_only_where_nothing_else_fits():
    model = llama(layers=16, hidden=2048)
    chosen = setup(on_gpu=False, nodes=1, ranks_per_node=2, zero_stage=3, global_batch_size=2, micro_batch_size=1)
    found = {
        gib: recommend(model, chosen, replace(CPU_NODE, memory_bytes=gib * GIB, shm_bytes=0)) for gib in (64, 26, 20)
    }
    assert all(choice is not None for choice in found.values())
    taken = {gib: (choice.setup.keeps_freed_memory, choice.setup.moments_precision) for gib, choice in found.items()}
    assert taken == {64: (True, "fp32"), 26: (False, "fp32"), 20: (False, "bf16")}


def test_nothing_is_recommended_that_the_lint_refuses():
    model = llama(layers=16, hidden=2048)
    chosen = setup(on_gpu=False, nodes=1, ranks_per_node=2, zero_stage=2, global_batch_size=2, micro_batch_size=1)
    node = replace(CPU_NODE, memory_bytes=20 * GIB, shm_bytes=0)
    free = recommend(model, chosen, node)
    assert free is not None and (free.setup.zero_stage, free.setup.moments_precision) == (3, "bf16")
    assert recommend(model, replace(chosen, beta2=0.999), node) is None
    compiled = list(candidates(replace(chosen, compiles=True)))
    assert 3 not in {one.zero_stage for one in compiled} and 2 in {one.zero_stage for one in compiled}
    least = candidates(replace(chosen, micro_batch_size=4, least_micro_batch=4, global_batch_size=64))
    assert {one.micro_batch_size for one in least} == {4, 8, 16, 32}
    halved = candidates(replace(setup(on_gpu=True, zero_stage=2), moments_precision="bf16"))
    assert not any(one.offload_optimizer for one in halved)


def test_the_nearest_number_of_nodes_fits_and_one_fewer_does_not():
    model = llama(layers=80, hidden=8192, vocabulary=128256)
    chosen = setup(nodes=1, ranks_per_node=8, global_batch_size=4096, sequence_length=4096)
    node = replace(GPU_NODE, gpu_memory_bytes=40 * GIB, memory_bytes=256 * GIB)
    assert recommend(model, chosen, node) is None
    found = nearest(model, chosen, node).more_nodes
    assert found is not None and found.footprint.fits and found.setup.nodes > 1
    assert recommend(model, replace(chosen, nodes=found.setup.nodes - 1), node) is None


def test_no_more_nodes_than_there_are_or_than_there_are_sequences_for():
    model = llama(layers=80, hidden=8192, vocabulary=128256)
    chosen = setup(nodes=1, ranks_per_node=8, global_batch_size=4096, sequence_length=4096)
    node = replace(GPU_NODE, gpu_memory_bytes=40 * GIB, memory_bytes=256 * GIB)
    assert nearest(model, chosen, replace(node, max_nodes=1)).more_nodes is None
    assert nearest(model, replace(chosen, global_batch_size=8), node).more_nodes is None


def test_a_larger_node_is_named_and_fits():
    model = llama(layers=40, hidden=4096)
    chosen = setup(on_gpu=False, precision="fp32", nodes=1, ranks_per_node=2, global_batch_size=2)
    needed = nearest(model, chosen, CPU_NODE).larger_node_bytes
    assert needed is not None and needed > CPU_NODE.memory_bytes
    assert recommend(model, chosen, replace(CPU_NODE, memory_bytes=needed)) is not None


def test_shorter_sequences_are_named_where_they_help():
    model = llama(layers=2, hidden=256)
    chosen = setup(
        on_gpu=False, precision="fp32", nodes=1, ranks_per_node=2, global_batch_size=2, sequence_length=10**6
    )
    found = nearest(model, chosen, CPU_NODE).shorter
    assert found is not None and found.footprint.fits
    longer = replace(chosen, sequence_length=2 * found.setup.sequence_length)
    assert recommend(model, longer, CPU_NODE) is None


def test_where_only_scores_are_too_large_sdpa_is_recommended():
    model = llama(layers=22, hidden=2048)
    chosen = setup(
        on_gpu=False,
        asked_attention="auto",
        nodes=1,
        ranks_per_node=2,
        micro_batch_size=8,
        global_batch_size=16,
        sequence_length=512,
    )
    assert chosen.attention == "eager"
    sdpa = replace(chosen, asked_attention="sdpa")
    sizes = [footprint(model, varied, CPU_NODE, takes_snapshots=False).host_bytes for varied in (sdpa, chosen)]
    assert sizes[1] - sizes[0] > 2 * 4 * GIB
    assert replace(chosen, asked_attention="sdpa") in list(candidates(chosen))
    assert not any(varied.attention == "eager" for varied in candidates(sdpa))
    assert replace(chosen, sequence_length=1024).attention == "sdpa"
