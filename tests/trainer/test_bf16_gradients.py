"""Gradients of ZeRO-1 in bf16 with fewer copies: called by DeepSpeed, and nothing but memory is different."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.ranks import TINY_LLAMA, Plan, job, run_attempt

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

BF16 = {"train__precision": "bf16", "train__steps": 4, "checkpoint__interval_steps": 0, "checkpoint__export": False}
KEPT = {"bf16": {"immediate_grad_update": False}}
"""DeepSpeed's default, which `validate` refuses."""
UNTIED = {"config": {**TINY_LLAMA, "tie_word_embeddings": False}}


@pytest.mark.parametrize(
    ("world_size", "settings"),
    [
        (2, {"train__global_batch_size": 12}),  # three micro-steps: written, then added to twice
        (3, {"train__global_batch_size": 6, "model": UNTIED, "train__gradient_clipping": 0.05}),
        (2, {"train__activation_checkpointing": True, "train__gradient_clipping": 0.0}),
    ],
)
def test_nothing_but_memory_is_different(tmp_path, tiny_corpus, tiny_cache, world_size, settings):
    found = []
    for plain in (False, True):
        log = tmp_path / f"log-{plain}"
        config = job(tmp_path / f"{plain}", tiny_corpus, **BF16, **settings, deepspeed=KEPT if plain else {})
        plan = Plan(
            gradients_log=log, plain_gradients=plain, least_shared_bytes=1
        )  # else gloo's order of sums, by place
        outcome = run_attempt(config, tiny_cache, world_size, plan)
        assert not outcome.errors, outcome.errors
        found.append([(e.step, e.data["loss"], e.data["grad_norm"]) for e in outcome.of("step")])
    assert len(found[0]) == 4 and found[0] == found[1]
    counts = Counter(Path(tmp_path / "log-False").read_text().split())
    assert counts["average"] == world_size * 4, "once a rank and step"
    assert counts["forget"] >= world_size * 4
    assert (counts["mine"] > 0) == (settings.get("train__gradient_clipping") != 0.0)
    tensors = counts["add"] / counts["average"]
    assert tensors >= 12, "every parameter's gradient, in each micro-step"
    assert not (tmp_path / "log-True").exists()


def test_other_optimizers_are_left_alone(tmp_path, tiny_corpus, tiny_cache):
    log = tmp_path / "log"
    for stage, precision in ((1, "fp32"), (2, "bf16")):
        config = job(
            tmp_path / f"{stage}", tiny_corpus, **{**BF16, "train__precision": precision}, train__zero_stage=stage
        )
        outcome = run_attempt(config, tiny_cache, 2, Plan(gradients_log=log))
        assert not outcome.errors, outcome.errors
    assert not log.exists()


def test_a_gradient_that_is_not_there_counts_as_nothing():
    """And one of an earlier step that still lies in its buffer is not summed over ranks."""
    import torch

    from zerofleet.trainer import bf16_gradients
    from zerofleet.trainer.bf16_gradients import Gradients

    flat = torch.full((8,), 9.0)
    parameters = [torch.nn.Parameter(torch.zeros(4, dtype=torch.bfloat16)) for _ in range(2)]

    optimizer = SimpleNamespace(
        fp32_groups_gradients_flat=[flat],
        fp32_groups_gradients=[[flat[:4], flat[4:]]],
        fp32_groups_has_gradients=[[False, False]],
        fp32_groups_gradient_flat_partition=[flat[:4]],
        dp_process_group=None,
    )
    gradients = Gradients(optimizer)
    parameters[0].grad = torch.ones(4, dtype=torch.bfloat16)
    for index, parameter in enumerate(parameters):
        gradients.add(parameter, 0, index, False)
    gradients.add(parameters[0], 0, 0, False)
    summed = []
    plain, bf16_gradients.average = bf16_gradients.average, lambda tensor, group: summed.append(tensor.tolist())
    try:
        gradients.average()
    finally:
        bf16_gradients.average = plain
    assert summed == [[2.0] * 4 + [0.0] * 4]
    assert optimizer.fp32_groups_has_gradients == [[True, True]], "another rank may have the second one's"
    assert [part.tolist() for part in gradients.mine()] == [[2.0] * 4], "what a rank does not update it need not clip"
    gradients.forget()
    assert optimizer.fp32_groups_has_gradients == [[False, False]]
