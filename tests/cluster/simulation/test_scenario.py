"""What follows from the numbers alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.cluster.simulation.test_run import SMALL, scenario
from zerofleet.cluster.simulation.costs import SOURCES, Costs
from zerofleet.cluster.simulation.failures import RATES
from zerofleet.cluster.simulation.scenario import FRAGMENT_HEADER_BYTES, closed_forms, manifest_bytes
from zerofleet.trainer.checkpoint.format import header_of
from zerofleet.trainer.checkpoint.fragments import FragmentKey


def test_every_cost_says_where_it_is_from():
    assert SOURCES.keys() == vars(Costs()).keys()


def test_published_rates():
    assert RATES["llama3"].mtbf_s(16_384) / 3600 == pytest.approx(54 * 24 / 419)
    assert sum(RATES["llama3"].shares.values()) == 419
    assert RATES["rsc1"].mtbf_s(16_384) / 3600 == pytest.approx(1.8, abs=0.05), "as the paper says of 16,384 GPUs"


def test_stage_3_cuts_every_tensor_among_all_ranks_and_stage_1_one_row_of_them():
    three, one = scenario("rank"), scenario("rank", zero_stage=1)
    assert three.fragments(32) == 3 * 32 * three.num_tensors and one.fragments(32) == 3 * (32 + one.num_tensors)
    assert closed_forms(three)["commit_fan_in_s"] > closed_forms(one)["commit_fan_in_s"]


def test_a_manifest_grows_by_its_rank_files_alone():
    small, large = (manifest_bytes(scenario("rank", gpus=gpus)) for gpus in (4096, 8192))
    assert (large - small) / 4096 == pytest.approx(300, abs=150)


def test_a_fragment_takes_about_so_much_of_a_header():
    keys = [
        FragmentKey(f"model.layers.{n}.mlp.down_proj.weight", "exp_avg_sq", 10**6, 10**4, "F32") for n in range(100)
    ]
    assert len(header_of(keys)) / 100 == pytest.approx(FRAGMENT_HEADER_BYTES, rel=0.25)


def test_what_every_rank_asks_of_every_other_grows_with_the_square():
    few, many = (closed_forms(scenario("rank", gpus=gpus)) for gpus in (1024, 4096))
    assert many["requests_from_storage"] == 16 * few["requests_from_storage"]
    assert many["restore_s"]["own memory"] > 3 * few["restore_s"]["own memory"]


def test_fewer_nodes_take_longer_steps():
    assert SMALL is not None
    whole = replace(scenario("rank"), micro_steps=4)
    assert whole.step_s(7) == whole.costs.step_s * 5 / 4 and whole.step_s(8) == whole.costs.step_s
