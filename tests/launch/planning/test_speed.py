"""The table of speed decisions says what the ranks will do."""

from __future__ import annotations

from pathlib import Path

import pytest

from zerofleet.launch.config import load_job
from zerofleet.launch.planning.model_shape import model_of
from zerofleet.launch.planning.speed import speed_choices
from zerofleet.trainer.sizing.setup import EAGER_TOKENS, Setup, attention_of

RECIPE = Path(__file__).parents[3] / "launch/recipes/quickstart.yaml"


def choices(*overrides: str, on_gpu: bool = False) -> dict[str, str]:
    job = load_job(RECIPE, list(overrides))
    setup = Setup.of(job.train_config(), job.cluster.nodes, job.cluster.ranks_per_node, on_gpu)
    return {each.what: each.choice for each in speed_choices(job, model_of(job).sizes, setup)}


def test_two_ranks_of_one_machine():
    found = choices("train.precision=bf16")
    assert found == {
        "attention": "eager",
        "torch.compile": "no",
        "freed memory": "kept",
        "loss": "fused",
        "gradients": "through shared memory",
        "cores": "the kernel's choice",
        "optimizer": "torch's fused AdamW",
    }


@pytest.mark.parametrize(
    ("overrides", "what", "choice"),
    [
        (["train.precision=fp32"], "attention", "sdpa"),
        (["train.precision=bf16", f"data.sequence_length={EAGER_TOKENS + 1}"], "attention", "sdpa"),
        (["model.attn_implementation=eager"], "attention", "eager"),
        (["train.compile=true"], "torch.compile", "yes"),
        (["train.zero_stage=3"], "torch.compile", "no"),
        (["train.precision=fp16"], "loss", "whole logits"),
        (["cluster.nodes=2"], "gradients", "through gloo"),
        (["train.zero_stage=3"], "gradients", "through gloo"),
        (["model.config.model_type=cohere", "model.config.logit_scale=0.5"], "loss", "whole logits"),
        (["train.moments_precision=bf16"], "optimizer", "zerofleet's, in chunks"),
        (["cluster.bind_cores=true"], "cores", "each rank's own"),
        (["train.keep_freed_memory=false"], "freed memory", "given back"),
    ],
)
def test_what_a_setting_changes(overrides, what, choice):
    assert choices(*overrides)[what] == choice


def test_on_gpus_nothing_of_a_cpu_is_said():
    found = choices("train.precision=bf16", on_gpu=True)
    assert found["attention"] == "sdpa" and found["Liger kernels"] == "no"
    asked = choices("train.precision=bf16", "model.liger_kernels=true", on_gpu=True)
    assert asked["Liger kernels"] == "yes"
    assert not {"freed memory", "gradients", "cores"} & found.keys()


def test_what_is_asked_for_is_taken():
    job = load_job(RECIPE, ["model.attn_implementation=sdpa", "train.precision=bf16"])
    assert attention_of(job.train_config(), on_gpu=False) == "sdpa"
