"""Causes that make the run wait for saves."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from zerofleet.cluster.goodput.account import Account, Cause
from zerofleet.trainer.checkpoint.cadence import daly_interval_s

SLOW_STORAGE_BYTES_PER_S = 50e6
"""A disk that is slower to write a checkpoint than this is slow: hard disks do 150 MB/s."""
LATENCY_S = 0.5
"""What the files and folders of one checkpoint take besides their bytes, made durable."""


@dataclass(frozen=True)
class Saves:
    """Those that made steps wait. `stall_s` of one."""

    count: int
    stall_s: float
    is_in_memory: bool


def saves_of(account: Account) -> Saves | None:
    """None: no step has stood still."""
    stalls = [s for event in account.steps if (s := float(event.data.get("stall_s", 0.0))) > 1e-4]
    infos = (event.data.get("message", "") for event in account.ledger.history.events if event.kind == "info")
    in_memory = any(str(message).startswith("snapshots in memory") for message in infos)
    return Saves(len(stalls), sum(stalls) / len(stalls), in_memory) if stalls else None


def _slow_writes(account: Account) -> tuple[float, float]:
    """Seconds that a checkpoint takes on its way to storage, and bytes per second, each the median; 0 where storage is not slow."""
    commits = [event for event in account.ledger.history.events if event.kind == "checkpoint"]
    if not commits:
        return 0.0, 0.0
    saves = saves_of(account)
    seconds = statistics.median(event.duration_s for event in commits)
    if saves is not None and not saves.is_in_memory:
        seconds = max(seconds, saves.stall_s)  # the ranks write themselves: the commit is the least of it
    rate = statistics.median(float(event.data.get("bytes", 0)) for event in commits) / max(1e-3, seconds - LATENCY_S)
    return (seconds, rate) if seconds > 2 * LATENCY_S and rate < SLOW_STORAGE_BYTES_PER_S else (0.0, 0.0)


def slow_storage(account: Account) -> list[Cause]:
    """A checkpoint takes long for its size, and somebody waits for it."""
    seconds, rate = _slow_writes(account)
    if not seconds:
        return []
    labels, saves = account.ledger.labels, saves_of(account)
    waiting_s = labels["save stall"] + labels["end"]
    evidence = f"a checkpoint takes {seconds:.1f} s to become durable, {rate / 1e6:.1f} MB/s; the run waited {waiting_s:.1f} s for saves and for the last of them"
    is_direct = saves is not None and not saves.is_in_memory
    auto = "checkpoint.snapshot_interval_steps=auto"
    setting, saving_s = (auto, labels["save stall"]) if is_direct else _rarer(account, saves)
    remedy = "a run.storage that is faster to write; snapshots in memory need room for two in /dev/shm"
    return [Cause("slow storage", evidence, waiting_s, setting, saving_s, remedy)]


def too_frequent_saves(account: Account) -> list[Cause]:
    """More often than loses least, by their measured cost and the failures seen (Daly 2006)."""
    saves = saves_of(account)
    if saves is None or _slow_writes(account)[0]:
        return []
    setting, saving_s = _rarer(account, saves)
    if not setting:
        return []
    every, cost_s = len(account.steps) / saves.count, saves.stall_s * saves.count
    evidence = (
        f"{saves.count} saves, one in {every:.3g} steps, each stands still for {saves.stall_s:.3g} s: {cost_s:.1f} s in all; least is lost "
        f"with one in {setting.partition('=')[2]} steps at {len(account.failures)} failures"
    )
    return [Cause("too frequent saves", evidence, cost_s, setting, saving_s)]


def _rarer(account: Account, saves: Saves | None) -> tuple[str, float]:
    """The setting with which least is lost, and what it saves; empty where saves are not twice as frequent."""
    if saves is None or not account.step_s:
        return "", 0.0
    work_s = max(1e-9, account.step_s - saves.stall_s * saves.count / len(account.steps))
    every = len(account.steps) / saves.count
    best = max(1, round(daly_interval_s(saves.stall_s, account.mtbf_s) / work_s))
    if best < 2 * every:
        return "", 0.0
    at_risk_s = len(account.failures) * (best - every) / 2 * work_s
    saving_s = saves.stall_s * saves.count * (1 - every / best) - at_risk_s
    checkpoint = account.config.checkpoint
    fixed = checkpoint.snapshot_interval_steps
    is_snapshots = saves.is_in_memory and isinstance(fixed, int) and 0 < fixed <= 1.5 * every
    name = "snapshot_interval_steps" if is_snapshots else "interval_steps"
    return f"checkpoint.{name}={best}", max(0.0, saving_s)
