"""The throughput benchmark's arithmetic; `test_command.py` has the real trainer run."""

from pathlib import Path

import pytest

from zerofleet.benchmarks.throughput import RECIPE, Case, cases, figures, hardware_flops_per_token
from zerofleet.launch.config import load_job
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.model import ModelShape

SHAPE = ModelShape(num_parameters=1000, num_matmul_parameters=900, num_layers=2, num_heads=4, head_size=8)


def test_cases_are_all_combinations_and_what_is_left_out_is_the_recipes():
    job = load_job(RECIPE, ["train.micro_batch_size=4", "train.zero_stage=2"])
    every = cases(job, [], [1, 2], [])
    assert every == [Case(4, 1, 2), Case(4, 2, 2)]
    assert len(cases(job, [1, 2], [1, 2], [0, 3])) == 8


def test_a_case_keeps_the_global_batch_and_what_is_more_than_a_step_is_refused():
    job = load_job(RECIPE, ["train.global_batch_size=16"])
    case = Case(4, 2, 3).job(job, Path("/x"), "case")
    assert (case.train.global_batch_size, case.train.micro_batch_size, case.train.zero_stage) == (16, 4, 3)
    with pytest.raises(UserError, match="Set train.global_batch_size=32 for all cases"):
        Case(16, 2, 1).job(job, Path("/x"), "case")


def test_recomputation_is_a_third_of_the_layers_work():
    model = 6 * 900 + 12 * 2 * 4 * 8 * 10
    assert hardware_flops_per_token(SHAPE, 300, 10, False) == SHAPE.flops_per_token(10) == model
    layers_forward = 2 * (900 - 300) + 4 * 2 * 4 * 8 * 10
    assert hardware_flops_per_token(SHAPE, 300, 10, True) == model + layers_forward


def test_rates_are_those_of_the_median_step():
    found = {
        "steps_s": [0.5, 0.5, 9.0],
        "tokens": [100, 98, 102],
        "peak_flops_per_rank": 1e6,
        "flops_per_token": {"mfu": 5e3},
    }
    assert figures(found, 2) == {"tokens_per_second": 200.0, "mfu": pytest.approx(0.5)}
