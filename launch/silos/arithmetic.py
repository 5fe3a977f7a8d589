"""What travels between silos, before anything is started. Closed-form; no torch."""

from __future__ import annotations

from collections.abc import Iterator

from zerofleet.launch.config import JobConfig
from zerofleet.launch.silos.jobs import silo_job
from zerofleet.trainer.batch import BatchPlan
from zerofleet.trainer.config import Codec, PrivacyConfig
from zerofleet.trainer.sizing import num_parameters, vocabulary_of

BITS: dict[Codec, float] = {"fp32": 32.0, "bf16": 16.0, "int8": 8.125, "int4": 4.25}
"""Of an element on the wire, a block's scale included."""


def describe_job(job: JobConfig) -> Iterator[str]:
    """The batch; where there are silos, that of each, and what they send each other."""
    if job.silos is None:
        plan = BatchPlan.of(job.train.global_batch_size, job.train.micro_batch_size, job.cluster.world_size)
        yield plan.describe(job.data.sequence_length)
        return
    for name in job.silos.members:
        own = silo_job(job, name, None)
        plan = BatchPlan.of(own.train.global_batch_size, own.train.micro_batch_size, own.cluster.world_size)
        yield f"silo {name}: ZeRO-{own.train.zero_stage}, {plan.describe(own.data.sequence_length)}"
    vocabulary = vocabulary_of(job)
    count = num_parameters(job.model.config, vocabulary) if vocabulary is not None else None
    if count is None:
        yield "between silos: the recipe does not say how many parameters the model has"
    else:
        yield between(count, len(job.silos.members), job.silos.interval_steps, job.silos.codec)
    if job.silos.privacy is not None:
        yield privacy(job.silos.privacy, job.train.steps // job.silos.interval_steps)


def privacy(config: PrivacyConfig, num_rounds: int) -> str:
    """What the whole run will cost each silo. Raises UserError without the accountant."""
    from zerofleet.trainer.silos.privacy import epsilon_of  # brings a compiler

    epsilon = epsilon_of(config.noise_multiplier, num_rounds, config.delta)
    return (
        f"privacy: each silo clips its deltas to a norm of {config.clip_norm:g} and adds noise of {config.noise_multiplier * config.clip_norm:g} to "
        f"each element; epsilon is {epsilon:.3g} at delta {config.delta:g} after all {num_rounds} rounds"
    )


def round_bytes(num_elements: int, codec: Codec) -> float:
    """What a silo sends in a round."""
    return num_elements * BITS[codec] / 8


def all_reduce_bytes(num_elements: int, num_silos: int) -> float:
    """What each of so many groups sends for one bf16 gradient in a ring all-reduce: 2 (K - 1) / K of it (Patarasuk and Yuan 2009)."""
    return 2 * (num_silos - 1) / num_silos * 2 * num_elements


def between(num_elements: int, num_silos: int, interval_steps: int, codec: Codec) -> str:
    """The arithmetic in a sentence."""
    sent, ring = round_bytes(num_elements, codec), all_reduce_bytes(num_elements, num_silos)
    return (
        f"between silos: {num_elements:,} parameters, so a silo sends {sent / 1e6:,.1f} MB ({codec}) every {interval_steps} steps; bf16 "
        f"data parallel over {num_silos} silos would send {ring / 1e6:,.1f} MB in every step (ring all-reduce), "
        f"{ring * interval_steps / sent:,.0f} times as much"
    )
