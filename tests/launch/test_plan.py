"""`zerofleet plan` as users call it: output, exit codes, speed, and nothing heavy imported; and the plan before a submit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from zerofleet.launch.backends import choice
from zerofleet.launch.planning import node_profile

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "launch/recipes/quickstart.yaml")
BILLION = str(ROOT / "launch/recipes/llama_1b.yaml")
H100 = str(ROOT / "launch/nodes/h100-8.yaml")
SEVENTY = (
    *("model.config.hidden_size=8192", "model.config.intermediate_size=28672", "model.config.num_hidden_layers=80"),
    *("model.config.num_attention_heads=64", "model.config.num_key_value_heads=8", "model.config.vocab_size=128256"),
    *("train.precision=bf16", "cluster.gpus_per_rank=1", "cluster.ranks_per_node=8", "train.micro_batch_size=1"),
)
GIB = 2**30


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Another one than that of the tests, whatever it is."""
    monkeypatch.setattr(node_profile, "memory_bytes", lambda: 16 * GIB)


def test_a_recipe_that_fits(zerofleet):
    code, out, err = zerofleet("plan", QUICKSTART)
    assert (code, err) == (0, "")
    assert "6,524,160 parameters in 6 layers (closed form)" in out
    assert "of 16.0 GiB per node" in out and "fits           on 1 x this machine" in out
    assert "head lost" in out and "a checkpoint every 40 steps, and those done while it is written" in out


def test_what_does_not_fit_is_an_error_with_numbers_and_what_does(zerofleet):
    code, out, err = zerofleet("plan", QUICKSTART, "--profile", H100, *SEVENTY, "cluster.nodes=2")
    assert code == 2 and "at loss" in out
    assert "device memory of a rank" in err and "h100-8 has 79.0 GiB" in err
    assert "What fits: " in err and "train.zero_stage=3" in err


def test_where_nothing_fits_the_nearest_that_does_is_named(zerofleet):
    code, _, err = zerofleet("plan", QUICKSTART, *SEVENTY[:6], "train.global_batch_size=2")
    assert code == 2 and "Nothing fits on 1 such node(s)" in err
    assert "a node with" in err and "GiB of memory" in err


def test_more_cores_than_there_are_do_not_fit(zerofleet, monkeypatch):
    monkeypatch.setattr(node_profile, "num_cores", lambda: 2)
    code, out, err = zerofleet("plan", QUICKSTART, "cluster.cpus_per_rank=1.5")
    assert code == 2 and "fits  " not in out
    assert "cluster.ranks_per_node=2 with cluster.cpus_per_rank=1.5 take 3 and this machine has 2" in err
    assert "What fits" not in err, "of memory there is enough"
    assert zerofleet("plan", QUICKSTART, "cluster.cpus_per_rank=1")[0] == 0


def test_checkpoints_that_the_disk_cannot_hold_do_not_fit(zerofleet, monkeypatch):
    usage = type("Usage", (), {"total": 64 * GIB, "free": GIB})
    monkeypatch.setattr(node_profile.shutil, "disk_usage", lambda path: usage)
    code, out, err = zerofleet("plan", QUICKSTART, "checkpoint.keep_last=50", "train.steps=4000")
    assert code == 2 and "of 1.0 GiB that are free" in out
    assert "/runs has 1.0 GiB free: lower checkpoint.keep_last" in err
    assert zerofleet("plan", QUICKSTART, "checkpoint.keep_last=2", "train.steps=4000")[0] == 0
    elsewhere = "run.storage=s3://bucket/runs"
    assert zerofleet("plan", QUICKSTART, "checkpoint.keep_last=50", "train.steps=4000", elsewhere)[0] == 0, (
        "nobody knows"
    )


def test_no_more_checkpoints_are_planned_than_there_will_be(zerofleet):
    def disk(*overrides: str) -> float:
        facts = json.loads(zerofleet("plan", QUICKSTART, "checkpoint.export=false", "--json", *overrides)[1])
        return facts["disk_bytes"] / facts["checkpoint_bytes"]

    assert disk("checkpoint.keep_last=50") == 1 + 120 / 40
    assert disk("checkpoint.keep_last=2") == 3, "and the one that is written"
    assert disk("checkpoint.interval_steps=0") == 1, "that of the end"
    assert disk("checkpoint.keep_last=50", "checkpoint.interval_steps=auto") == 51


def test_json_has_the_same_in_bytes(zerofleet):
    code, out, _ = zerofleet("plan", QUICKSTART, "--json")
    facts = json.loads(out)
    assert code == 0 and facts["fits"] and facts["model"]["parameters"] == 6_524_160
    peak = facts["rank"]["moments"][facts["rank"]["peak"]]
    assert sum(peak.values()) == max(sum(parts.values()) for parts in facts["rank"]["moments"].values())
    assert facts["host_bytes"] >= sum(facts["host"].values())


def test_the_recommendation_can_be_pasted_and_is_then_as_it_is(zerofleet):
    arguments = ("plan", QUICKSTART, "--profile", H100, *SEVENTY, "cluster.nodes=4", "train.global_batch_size=512")
    _, out, _ = zerofleet(*arguments, "--json")
    recommended = json.loads(out)["recommended"]
    assert recommended
    code, out, _ = zerofleet(*arguments, *recommended, "--json")
    assert code == 0 and json.loads(out)["recommended"] == []


def test_a_billion_parameters_fit_two_ranks_and_24_gib_by_the_plans_own_recommendation(zerofleet, monkeypatch):
    monkeypatch.setattr(node_profile, "memory_bytes", lambda: int(23.5 * GIB))
    code, out, _ = zerofleet("plan", BILLION, "--json")
    facts = json.loads(out)
    assert code == 0 and facts["model"]["parameters"] == 1_100_048_384
    assert facts["recommended"] == [] and facts["host_bytes"] < 22 * GIB
    zero = "deepspeed.zero_optimization"
    plain = ("train.moments_precision=fp32", "train.keep_freed_memory=true", f"{zero}={{}}")
    code, out, _ = zerofleet("plan", BILLION, *plain, "--json")
    recommended = set(json.loads(out)["recommended"])
    assert code == 2 and {"train.moments_precision=bf16", "train.keep_freed_memory=false"} < recommended
    assert {f"{zero}.sub_group_size=50000000", f"{zero}.stage3_max_live_parameters=20000000"} < recommended


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.zero_stag=3", "The nearest is train.zero_stage"),
        ("model.config.num_hidden_layers=0", "set a whole number, 1 or more"),
        ("model.config.model_type=lama", "is not a model of transformers"),
        ("model.config={model_type: t5}", "T5Config has no causal language model"),
    ],
)
def test_mistakes(zerofleet, override, says):
    code, out, err = zerofleet("plan", QUICKSTART, override)
    assert (code, out) == (2, "") and says in err, err


def test_neither_torch_nor_ray_is_needed():
    script = f"""
import sys
for name in ("torch", "ray", "deepspeed", "transformers", "numpy"):
    sys.modules[name] = None
from zerofleet.launch import cli
sys.exit(cli.main(["plan", {QUICKSTART!r}]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# -- before a submit ------------------------------------------------------------------------------------------------------
def test_submit_says_in_a_line_what_the_job_takes(zerofleet, recipe, drive):
    drive("finish")
    code, out, _ = zerofleet("submit", str(recipe), "model.config.num_hidden_layers=2")
    assert code == 0 and out.splitlines()[0].startswith("plan: ") and "of 16.0 GiB of memory per node" in out


def test_submit_refuses_what_is_certain_not_to_fit_before_anything_is_taken(zerofleet, recipe, tmp_path):
    code, out, err = zerofleet("submit", str(recipe), *SEVENTY[:6], "train.global_batch_size=2")
    assert (code, out) == (2, "") and "memory of a node" in err
    assert not (tmp_path / "runs").exists()


def test_submit_warns_where_it_is_close_and_goes_on(zerofleet, recipe, drive, monkeypatch):
    drive("finish")
    monkeypatch.setattr(node_profile, "memory_bytes", lambda: 2 * GIB)
    code, _, err = zerofleet("submit", str(recipe), "model.config.num_hidden_layers=2")
    assert code == 0 and err.startswith("warning: the job does not fit")


def test_nodes_of_a_cluster_are_not_judged_by_this_machine(recipe):
    from zerofleet.launch.config import load_job

    job = load_job(recipe, [*SEVENTY[:6], "cluster.address=head:6379"])
    assert choice.plan_first(job) == ""
