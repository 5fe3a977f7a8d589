"""What makes a job's steps faster, and whether it has it: the decisions of docs/speed.md, by the job's own settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from zerofleet.launch.config import JobConfig
from zerofleet.trainer.sizing.memory import fuses_loss
from zerofleet.trainer.sizing.model import ModelSizes
from zerofleet.trainer.sizing.setup import EAGER_TOKENS, Setup


@dataclass(frozen=True)
class SpeedChoice:
    """One decision. `why` holds what was measured (benchmarks/results/2026-11-23-speed.md), or that nothing was."""

    what: str
    choice: str
    why: str


def speed_choices(job: JobConfig, model: ModelSizes, setup: Setup) -> Iterator[SpeedChoice]:
    """In the order of what they are worth on a CPU."""
    yield _attention(job, setup)
    yield _compile(job, setup)
    if not setup.on_gpu:
        yield SpeedChoice(
            "freed memory",
            "kept" if setup.keeps_freed_memory else "given back",
            "kept, a step of a small model is 1.05 times as fast, and a rank holds up to twice what is in use",
        )
    yield _loss(model, setup)
    if not setup.on_gpu:
        yield _gradients(setup)
        yield _cores(job)
    yield SpeedChoice("optimizer", *_optimizer(setup))
    if setup.on_gpu:
        why = "model.liger_kernels=true: norms, rotary embeddings and gated MLPs; nothing was measured on a GPU yet"
        yield SpeedChoice("Liger kernels", "yes" if job.model.liger_kernels else "no", why)


def _attention(job: JobConfig, setup: Setup) -> SpeedChoice:
    asked = "" if job.model.attn_implementation == "auto" else "as the recipe says; "
    if setup.on_gpu:
        why = "torch's fused kernels; nothing was measured on a GPU yet"
    elif setup.precision == "bf16":
        why = f"eager is 1.15 to 1.2 times as fast in bf16 up to {EAGER_TOKENS} tokens, where scores need little memory; sdpa above 1,024"
    else:
        why = "sdpa is as fast as eager or faster, and keeps no scores"
    return SpeedChoice("attention", setup.attention, asked + why)


def _loss(model: ModelSizes, setup: Setup) -> SpeedChoice:
    if fuses_loss(model, setup):
        why = "with the output embedding, a chunk of tokens at a time: about half of the time, and 12 bytes per logit less"
        return SpeedChoice("loss", "fused", why)
    is_fp16 = setup.precision == "fp16"
    why = (
        "fp16 gradients are multiplied by the loss scale before they are rounded"
        if is_fp16
        else "the model scales, caps or shifts its logits"
    )
    return SpeedChoice("loss", "whole logits", why)


def _gradients(setup: Setup) -> SpeedChoice:
    if setup.zero_stage == 3:
        return SpeedChoice(
            "gradients", "through gloo", "what ZeRO-3 scatters and gathers beside the computation is not shared"
        )
    if setup.nodes > 1 or setup.ranks_per_node == 1:
        return SpeedChoice("gradients", "through gloo", "ranks of several hosts, or one alone")
    why = "ranks of one host: a third of the time that the loopback takes"
    return SpeedChoice("gradients", "through shared memory", why)


def _cores(job: JobConfig) -> SpeedChoice:
    why = "cluster.bind_cores=true, for nodes that the run has to itself: nothing was won on one with two cores; NUMA nodes were not tried"
    return SpeedChoice("cores", "each rank's own" if job.cluster.bind_cores else "the kernel's choice", why)


def _compile(job: JobConfig, setup: Setup) -> SpeedChoice:
    if setup.zero_stage == 3:
        return SpeedChoice("torch.compile", "no", "not with ZeRO-3, whose hooks would cut every layer")
    why = "train.compile=true: 1.13 to 1.17 times as fast on a CPU, after 20 to 70 s with every first start on a machine, some with each later one"
    return SpeedChoice("torch.compile", "yes" if job.train.compile else "no", why)


def _optimizer(setup: Setup) -> tuple[str, str]:
    if setup.offload_optimizer:
        return "DeepSpeedCPUAdam", "the optimizer's states are offloaded"
    if setup.moments_precision == "bf16":
        return "zerofleet's, in chunks", "moments are bf16"
    return "torch's fused AdamW", "one pass over the states, no temporaries"
