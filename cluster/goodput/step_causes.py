"""Causes that make steps take longer."""

from __future__ import annotations

import statistics

from zerofleet.cluster.goodput.account import LEAST_SHARE, Account, Cause
from zerofleet.cluster.policy.stragglers import WINDOW_STEPS, Straggler, outliers
from zerofleet.trainer.batch import BatchPlan

FEW_TOKENS = 1024
"""Per micro-step. Each one reads all weights, twice for backward: 2 FLOP per weight and token stay below what devices compute per byte
that they read (100 to 600) when there are fewer tokens than some hundreds."""


def slow_rank(account: Account) -> list[Cause]:
    """All others wait for it in every step."""
    costs_s: dict[int, float] = {}
    newest: dict[int, tuple[int, Straggler]] = {}
    for record in account.ledger.history.attempts:
        times = {
            rank: known for (attempt, rank), known in account.ledger.rank_times.items() if attempt == record.attempt
        }
        measured = {rank: known for rank, known in times.items() if known.steps >= WINDOW_STEPS and known.own_s}
        for slow in outliers({rank: known.own_s / known.steps for rank, known in measured.items()}):
            excess_s = (slow.own_s - slow.median_s) * times[slow.rank].steps
            costs_s[slow.rank] = costs_s.get(slow.rank, 0.0) + excess_s
            newest[slow.rank] = record.attempt, slow
    if not costs_s:
        return []
    rank = max(costs_s, key=lambda rank: costs_s[rank])
    attempt, slow = newest[rank]
    node = account.nodes.get((attempt, rank), "")
    evidence = (
        f"rank {rank}{f' on node {node}' if node else ''} takes {slow.own_s:.3g} s of its own work per step, the ranks' median is "
        f"{slow.median_s:.3g} s ({slow.ratio:.2f} x); {len(costs_s)} of {account.cluster.world_size} ranks are slow"
    )
    remedy = f"look at what else runs on {f'node {node}' if node else 'its node'}, at its clock and temperature; or leave it out"
    return [Cause("slow rank", evidence, costs_s[rank], remedy=remedy)]


def data_wait(account: Account) -> list[Cause]:
    """The step waits for the rank that waits longest."""
    longest: dict[int, float] = {}
    for (attempt, _), times in account.ledger.rank_times.items():
        longest[attempt] = max(longest.get(attempt, 0.0), times.data_s)
    cost_s = max(account.ledger.labels["data wait"], sum(longest.values()))
    share = cost_s / max(1e-9, account.ledger.labels["step"] + account.ledger.labels["data wait"])
    if share < 2 * LEAST_SHARE:
        return []
    evidence = f"the ranks wait {cost_s:.1f} s for their micro-batches, {share:.0%} of the time of all steps"
    place = account.config.data.cache or "$ZEROFLEET_CACHE, by default ~/.cache/zerofleet"
    remedy = f"put the prepared data on a local disk or in memory, at one path on every host (it is in {place})"
    # The driver prepares on its own host: what is in its memory no other host sees.
    hosts = {event.data.get("node") for event in account.ledger.history.events if event.kind == "phase"} - {None}
    setting = "data.cache=/dev/shm/zerofleet-cache" if len(hosts) < 2 and not place.startswith("/dev/shm") else ""
    return [Cause("data wait", evidence, cost_s, setting, cost_s if setting else 0.0, remedy)]


def compile_every_step(account: Account) -> list[Cause]:
    """After the first steps nothing should be compiled any more."""
    late = [event for event in account.steps if event.step > 3]
    compiling = [event for event in late if event.data.get("compile_s", 0.0) > 0]
    if not late or 2 * len(compiling) < len(late):
        return []
    cost_s = sum(float(event.data["compile_s"]) for event in compiling)
    evidence = f"torch.compile works in {len(compiling)} of {len(late)} steps, {cost_s / len(compiling):.3g} s in each"
    remedy = "a shape or a value changes from step to step: look at TORCH_LOGS=recompiles, or compile with dynamic=True"
    return [Cause("compile every step", evidence, cost_s, remedy=remedy)]


def tiny_micro_batch(account: Account) -> list[Cause]:
    """Many micro-steps of few tokens. What one costs whatever its size cannot be told from one run: it is at most all that is neither model
    FLOP nor another cause's, and half of that is expected."""
    train, attempts = account.config.train, account.ledger.history.attempts
    known = [float(event.data["mfu"]) for event in account.steps if event.data.get("mfu")]
    if not attempts or not known or attempts[-1].micro_batch_size(train.micro_batch_size) < train.micro_batch_size:
        return []  # a larger one has run out of memory
    plan = BatchPlan.of(train.global_batch_size, train.micro_batch_size, attempts[-1].world_size)
    count, tokens = plan.gradient_accumulation_steps, train.micro_batch_size * account.config.data.sequence_length
    factor = min(count, -(-FEW_TOKENS // tokens))
    if count < 2 or factor < 2:
        return []
    mfu = min(1.0, statistics.median(known))
    others_s = sum(cause.cost_s for rule in (slow_rank, swap) for cause in rule(account))
    most_s = max(0.0, account.ledger.labels["step"] * (1 - mfu) - others_s) * (1 - 1 / factor)
    evidence = (
        f"{count} micro-steps of {tokens} tokens in every step, at {mfu:.1%} MFU: between nothing and {most_s:.1f} s are what a "
        f"micro-step costs whatever its size; half of that is told"
    )
    setting = f"train.micro_batch_size={train.micro_batch_size * factor}"
    remedy = "a larger micro-batch needs more memory for activations: try it for a few steps"
    return [Cause("tiny micro-batch", evidence, most_s / 2, setting, most_s / 2, remedy)]


def swap(account: Account) -> list[Cause]:
    """By the kernel's account of the time in which somebody waited for memory (PSI), that is beyond what a step takes."""
    cost_s = sum(min(event.duration_s, float(event.data.get("paging_s", 0.0))) for event in account.steps)
    if cost_s < LEAST_SHARE * account.ledger.labels["step"]:
        return []
    evidence = f"processes on rank 0's host waited {cost_s:.1f} s for memory to be paged in or reclaimed, by the kernel's account"
    remedy = (
        "less memory per host: raise train.zero_stage, lower cluster.ranks_per_node, or take no snapshots in memory"
    )
    asked, attempts = account.config.train.micro_batch_size, account.ledger.history.attempts
    smaller = (attempts[-1].micro_batch_size(asked) if attempts else asked) // 2
    setting = f"train.micro_batch_size={smaller}" if smaller else "train.activation_checkpointing=true"
    return [Cause("swap", evidence, cost_s, setting, cost_s, remedy)]
