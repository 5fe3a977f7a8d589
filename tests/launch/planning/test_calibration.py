"""What is kept of a calibration, and what a later plan makes of it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import product

import pytest

from tests.trainer.sizing.models import CPU_NODE, GPU_NODE, llama, setup
from zerofleet.launch.config import parse_job
from zerofleet.launch.planning.before_submit import plan_first
from zerofleet.launch.planning.calibration import PLAN, Calibration, calibration_of, store, stored
from zerofleet.launch.planning.node_profile import calibrated
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.sizing.node import Node, footprint

JOB = """
model: {config: {model_type: llama, hidden_size: 64}}
data: {files: [python-stdlib]}
train: {steps: 3, global_batch_size: 8, micro_batch_size: 2, precision: fp32}
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZEROFLEET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def job(*overrides: str):
    return parse_job(JOB, "test", overrides)


def test_three_steps_become_a_rate_with_its_error_and_memory_a_ratio():
    found = calibration_of([1.0, 2.0, 4.0], own=[90, 110], flops_per_step=8e9, planned=100, parameters=5)
    assert found.flops_per_rank == pytest.approx((8 + 4 + 2) / 3 * 1e9)
    assert found.flops_error == pytest.approx(3.0551 / 3**0.5 / (14 / 3), rel=1e-3)
    assert (found.memory_ratio, found.least_memory_ratio) == (pytest.approx(1.1), pytest.approx(0.9))


def test_it_is_kept_for_the_same_ranks_and_precision_only():
    one, other = (calibration_of([s, s], [1], 1e9, 1, 1) for s in (1.0, 2.0))
    store(job(), one)
    store(job("cluster.ranks_per_node=4"), other)
    assert stored(job()) == one and stored(job("cluster.ranks_per_node=4")) == other
    assert stored(job("train.precision=bf16")) is None


def test_a_damaged_file_is_measured_again_and_replaced(cache):
    cache.mkdir()
    (cache / "calibration.json").write_text("{")
    assert stored(job()) is None
    found = calibration_of([1.0, 1.0], [1], 1e9, 1, 1)
    store(job(), found)
    assert stored(job()) == found


def test_a_cache_that_cannot_be_written_is_said(cache):
    cache.write_text("a file")
    with pytest.raises(UserError, match="set ZEROFLEET_CACHE"):
        store(job(), calibration_of([1.0, 1.0], [1], 1e9, 1, 1))


def test_a_plan_is_never_made_less_careful_by_it():
    node = Node("here", 2, 10**9, 10**9)
    assert calibrated(node, None) == node
    found = calibrated(node, Calibration(1e9, 0.02, 0.8, 0.7, 1, "2026-01-01"))
    assert found.memory_ratio == 1.0 and found.speeds is not None and found.speeds.flops == 1e9
    assert calibrated(node, Calibration(1e9, 0.02, 1.2, 1.1, 1, "2026-01-01")).memory_ratio == 1.2
    assert "+- 2.0%" in found.speeds_source


def test_submit_plans_with_it(capsys):
    shape = "model.config={model_type: gpt2, n_embd: 64, n_layer: 2, n_head: 2, vocab_size: 512, n_positions: 2048}"
    assert plan_first(job(shape)).startswith("plan: ")
    store(job(), calibration_of([1.0, 1.0], [10**6], 1e9, 1, 1))
    assert plan_first(job(shape)) == "" and "warning: the job does not fit" in capsys.readouterr().err


def test_another_plan_of_memory_is_corrected_anew():
    """When this fails the formulas have changed: raise PLAN, so that what was measured of the old ones is measured again."""
    figures = []
    for stage, precision, offloads, accumulation, on_gpu in product(
        range(4), ("fp32", "bf16", "fp16"), (False, True), (1, 4), (False, True)
    ):
        chosen = setup(zero_stage=stage, precision=precision, on_gpu=on_gpu, offload_optimizer=offloads and stage > 0)
        chosen = replace(chosen, global_batch_size=accumulation * chosen.micro_batch_size * chosen.world_size)
        figures.append(footprint(llama(), chosen, GPU_NODE if on_gpu else CPU_NODE).bytes_per_rank)
    assert (PLAN, hashlib.sha256(repr(figures).encode()).hexdigest()[:16]) == (4, "9c2a4279d3eb549c")
