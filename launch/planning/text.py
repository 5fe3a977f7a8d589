"""A plan as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from zerofleet.launch.planning.durable import durable_bound
from zerofleet.launch.planning.job_plan import JobPlan
from zerofleet.launch.planning.speed import speed_choices
from zerofleet.launch.words import duration
from zerofleet.trainer.sizing.setup import Setup

_WIDTH = 14


def text_of(plan: JobPlan) -> str:
    """All of it."""
    return "".join(f"{name:<{_WIDTH}} {value}\n" for name, value in _rows(plan))


def one_line(plan: JobPlan) -> str:
    """For `submit`."""
    found, node = plan.footprint, plan.node
    device = f", {size(found.device_bytes)} of {size(node.gpu_memory_bytes)} per GPU" if found.setup.on_gpu else ""
    return f"plan: {size(found.host_bytes)} of {size(node.memory_bytes)} of memory per node{device}"


def refusal(plan: JobPlan) -> str:
    """What does not fit, the numbers, and the nearest things that do."""
    return ". ".join(["the job does not fit", *plan.troubles, *([] if plan.footprint.fits else [_of_memory(plan)])])


def _of_memory(plan: JobPlan) -> str:
    setup = plan.footprint.setup
    short = "; ".join(
        f"{shortage.what}: {size(shortage.needed_bytes)} are needed and {plan.node.name} has {size(shortage.limit_bytes)}"
        for shortage in plan.footprint.shortages
    )
    if plan.choice is not None:
        remedy = f"What fits: {' '.join(plan.changes)}"
    elif found := plan.remedies:
        remedy = f"Nothing fits on {setup.nodes} such node(s). The nearest that does: {'; or '.join(found)}"
    else:
        remedy = "Nothing near fits either: a smaller model, or larger nodes"
    return f"{short}. {remedy}"


def size(num_bytes: float) -> str:
    """`812 MiB`, `23.4 GiB`, `1.2 TiB`."""
    if num_bytes < 2**30:
        return f"{num_bytes / 2**20:,.0f} MiB"
    return f"{num_bytes / 2**30:,.1f} GiB" if num_bytes < 2**40 else f"{num_bytes / 2**40:,.2f} TiB"


def _rows(plan: JobPlan) -> Iterator[tuple[str, str]]:
    setup, model, node = plan.footprint.setup, plan.model.sizes, plan.node
    yield "model", f"{model.parameters:,} parameters in {model.num_layers} layers ({plan.model.source})"
    yield "as written", _settings(setup)
    yield "batch", setup.batch.describe(setup.sequence_length)
    yield from _memory(plan)
    yield from _storage(plan)
    yield "travels", _traffic(plan)
    yield "step", _step(plan)
    for number, each in enumerate(speed_choices(plan.job, model, setup)):
        yield "" if number else "speed", f"{each.what}: {each.choice} ({each.why})"
    if plan.price is not None:
        yield "price", _price(plan, plan.price)
    if plan.fits:
        yield "fits", f"on {setup.nodes} x {node.name}"
    yield "recommended", _recommended(plan)


def _settings(setup: Setup) -> str:
    offload = " and ".join(
        name for name, is_on in (("optimizer", setup.offload_optimizer), ("weights", setup.offload_param)) if is_on
    )
    parts = [
        f"ZeRO-{setup.zero_stage} in {setup.precision}",
        f"{setup.nodes} nodes x {setup.ranks_per_node} ranks {'with a GPU each' if setup.on_gpu else 'on CPUs'}",
        f"micro-batch {setup.micro_batch_size} x {setup.sequence_length} tokens",
        "activation checkpointing" if setup.activation_checkpointing else "no activation checkpointing",
        f"{offload} offloaded" if offload else "nothing offloaded",
    ]
    return ", ".join(parts)


def _memory(plan: JobPlan) -> Iterator[tuple[str, str]]:
    found, node = plan.footprint, plan.node
    for moment in found.memory.moments:
        mark = " <- peak" if moment == found.memory.peak else ""
        yield f"at {moment.name}", f"{size(moment.total_bytes)} per rank: {_parts(moment.parts)}{mark}"
    if found.setup.on_gpu:
        yield (
            "GPU",
            f"{size(found.device_bytes)} of {size(node.gpu_memory_bytes)}, the peak with {_parts(_beside(plan))}",
        )
    yield "host memory", f"{size(sum(found.host.values()))} of {size(node.memory_bytes)} per node: {_parts(found.host)}"
    yield "", f"while the model is built {size(found.load_bytes)}"
    buffers = found.buffers
    yield (
        "snapshots",
        (
            f"{buffers.own} of its own and {buffers.replicas} of a buddy per node, {size(plan.sizes.snapshot_bytes)} each"
            if buffers.own
            else "none: checkpoints go straight to storage, and the ranks wait for them"
        ),
    )


def _beside(plan: JobPlan) -> dict[str, int]:
    device = plan.footprint.device
    return {name: device[name] for name in ("context and communication", "fragmentation reserve")}


def _parts(parts: Mapping[str, int]) -> str:
    largest_first = sorted(parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {size(number)}" for name, number in largest_first if number >= 2**20)


def _storage(plan: JobPlan) -> Iterator[tuple[str, str]]:
    write_s, notice_s = plan.write_s, plan.node.notice_s
    took = "" if write_s is None else f", {size(plan.sizes.snapshot_bytes)} of it per node, written in {write_s:.0f} s"
    yield "checkpoint", f"{size(plan.sizes.checkpoint_bytes)}{took}"
    if write_s is not None and notice_s is not None:
        verdict = "fits into" if write_s < notice_s else "DOES NOT FIT INTO"
        yield "", f"that {verdict} the notice of a preemption, {notice_s:.0f} s, which the step that runs is part of"
    free = "" if plan.node.disk_bytes is None else f" of {size(plan.node.disk_bytes)} that are free"
    yield "disk", f"{size(plan.disk_bytes)}{free} for checkpoints and export, without the prepared data"
    pace = plan.pace
    bound = durable_bound(plan.job.checkpoint, plan.job.train.steps, None if pace is None else pace.step_s, write_s)
    steps = "" if bound.steps is None else f"at most {bound.steps} steps: "
    yield "head lost", f"{steps}{bound.why}"


def _traffic(plan: JobPlan) -> str:
    if not plan.traffic.total_bytes:
        return "nothing: there is one rank"
    parts = {"gradients": plan.traffic.gradients, "weights": plan.traffic.weights}
    return f"{size(plan.traffic.total_bytes)} per rank and step: {_parts(parts)}"


def _step(plan: JobPlan) -> str:
    pace = plan.pace
    if pace is None:
        return "how fast this hardware is, is not known: a profile (--profile) can say"
    return (
        f"{pace.bound_s:.3g} s if all that can overlap does, {pace.step_s:.3g} s if nothing does: compute {pace.compute_s:.3g}, network "
        f"{pace.network_s:.3g}, optimizer {pace.optimizer_s:.3g} s ({plan.node.speeds_source})"
    )


def _price(plan: JobPlan, per_hour: float) -> str:
    if plan.pace is None:
        return f"{per_hour:,.2f} per hour"
    total_s = plan.pace.step_s * plan.job.train.steps
    return f"{per_hour:,.2f} per hour; {per_hour * total_s / 3600:,.2f} for {plan.job.train.steps} steps in {duration(total_s)}"


def _recommended(plan: JobPlan) -> str:
    if plan.choice is None:
        return refusal(plan)
    if plan.changes:
        return " ".join(plan.changes)
    return "as it is"
