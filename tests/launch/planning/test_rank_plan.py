"""What a run's record keeps of its plan."""

from __future__ import annotations

from pathlib import Path

from zerofleet.launch.config import load_job
from zerofleet.launch.planning.job_plan import plan_job
from zerofleet.launch.planning.model_shape import planned_by_closed_form
from zerofleet.launch.planning.node_profile import this_machine
from zerofleet.launch.planning.rank_plan import rank_plan

QUICKSTART = str(Path(__file__).parents[3] / "launch/recipes/quickstart.yaml")


def test_it_is_the_plans_share_of_a_rank():
    job = load_job(QUICKSTART, [])
    kept, model = rank_plan(job), planned_by_closed_form(job)
    assert model is not None
    plan = plan_job(job, model, this_machine(job)).footprint
    assert kept["ranks"] == 2 and kept["memory_bytes"] == plan.host["ranks"] // 2 and "device_bytes" not in kept
    assert kept["parts"] == plan.memory.peak.parts and sum(kept["parts"].values()) < kept["memory_bytes"]


def test_on_gpus_it_is_of_the_device():
    kept = rank_plan(load_job(QUICKSTART, ["cluster.gpus_per_rank=1", "train.precision=bf16"]))
    assert kept["device_bytes"] == sum(kept["parts"].values())


def test_a_model_that_is_not_known_has_no_plan():
    assert rank_plan(load_job(QUICKSTART, ["model.config.model_type=bert"])) == {}
