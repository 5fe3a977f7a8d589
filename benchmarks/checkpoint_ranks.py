"""What the ranks of checkpoint.py do: each function runs on every rank of a group, and rank 0 returns its figures.

Every figure is in seconds and of the slowest rank; every trial begins at a barrier, with nothing dirty and, where a figure
is `cold`, with nothing in the page cache.
"""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from zerofleet.benchmarks.checkpoint_agent import AgentLine, snapshots_of
from zerofleet.benchmarks.peers.universal import UNIVERSAL_TAG
from zerofleet.benchmarks.rank_group import Group
from zerofleet.trainer.checkpoint.commit import partial_digests
from zerofleet.trainer.checkpoint.load import load, sum_digests
from zerofleet.trainer.checkpoint.reader import CheckpointReader
from zerofleet.trainer.checkpoint.save import key_of, saved_slots, to_numpy
from zerofleet.trainer.events import Control, Event
from zerofleet.trainer.loop import Loop
from zerofleet.trainer.run_folder import CheckpointId, RunFolder

Figures = dict[str, float]
Round = dict[str, Figures]
"""Arm to its figures."""


class WrongState(RuntimeError):
    """What was loaded is not what was saved."""


def load_ours(loop: Loop, open_reader: Callable[[], Any], checkpoint: CheckpointId) -> dict[str, str]:
    manifest = load(open_reader, checkpoint, loop.adapter, loop.fingerprints, loop.device, lambda: None)
    return manifest.digests


def slowest(seconds: float) -> float:
    """Of all ranks."""
    value = torch.tensor([seconds], dtype=torch.float64)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return float(value)


def timed(action: Callable[[], Any]) -> float:
    dist.barrier()
    began = time.perf_counter()
    action()
    return slowest(time.perf_counter() - began)


def digests_of(loop: Loop) -> dict[str, str]:
    """Of the logical state that the engine holds now: the same whatever the world size and the stage."""
    held = ((key_of(slot), to_numpy(slot.saved_view())) for slot in saved_slots(loop.adapter))
    return sum_digests(partial_digests(held), loop.adapter, loop.device)


def require(what: str, found: dict[str, str], wanted: dict[str, str]) -> None:
    """Raises WrongState where a digest is another."""
    if found != wanted:
        wrong = [label for label in wanted if found.get(label) != wanted[label]]
        raise WrongState(f"{what}: {len(wrong)} of {len(wanted)} tensors differ ({', '.join(wrong[:3])})")


def forget(loop: Loop) -> None:
    """Overwrites the engine's state, so that a load has to bring it back."""
    for slot in loop.adapter.slots():
        slot.view.zero_()


# -- another world size and stage -----------------------------------------------------------------------------------------
def measure_resizes(
    group: Group, num_rounds: int, saved: RunFolder, step: int, deepspeed_folder: Path, wanted: dict[str, str]
) -> list[Round]:
    """Rounds of our load, and of DeepSpeed's conversion and load, into the same engine; the first is not counted."""
    loop = make_loop(group, None)
    checkpoint = CheckpointId(step, 1, group.world.silo)
    open_reader = functools.partial(CheckpointReader, saved.storage, checkpoint)
    rounds: list[Round] = []
    for _ in range(num_rounds + 1):
        forget(loop)
        ours = {"resize_s": timed(lambda: load_ours(loop, open_reader, checkpoint))}
        require("zerofleet, another world size and stage", digests_of(loop), wanted)
        if group.world.rank == 0:
            shutil.rmtree(deepspeed_folder / UNIVERSAL_TAG, ignore_errors=True)
        forget(loop)
        convert_s = _converted(group, deepspeed_folder)
        load_s = timed(lambda: loop.engine.load_checkpoint(str(deepspeed_folder), tag=UNIVERSAL_TAG))
        require("ds_to_universal", digests_of(loop), wanted)
        theirs = {"resize_s": convert_s + load_s, "convert_s": convert_s, "load_s": load_s}
        rounds.append({"zerofleet": ours, "ds_to_universal": theirs})
    return rounds[1:]


def _converted(group: Group, folder: Path) -> float:
    """Seconds that the helper took for it."""
    if group.world.rank == 0:
        group.helper.send(str(folder))
        seconds = [float(group.helper.recv())]
    else:
        seconds = [0.0]
    dist.broadcast_object_list(seconds)
    return seconds[0]


# -- training while a save runs -------------------------------------------------------------------------------------------
def measure_slowdown(group: Group, num_pairs: int) -> list[dict[str, float]]:
    """Pairs of windows of training steps: one with a save from its first to its last step, and as many steps without.

    A window ends after the step in which the save has become durable.
    """
    agent = AgentLine(group)
    loop = make_loop(group, agent.report)
    for _ in range(WARM_UP_STEPS):
        loop.train_step()
    pairs: list[dict[str, float]] = []
    for _ in range(num_pairs + 1):
        dist.barrier()
        began, steps = time.perf_counter(), 0
        loop.keeper.keep(Control("save"))
        while not _step_and_ask(loop, agent):
            steps += 1
        steps += 1
        saving_s = slowest(time.perf_counter() - began)
        agent.wait(loop.step - steps)
        dist.barrier()
        began = time.perf_counter()
        for _ in range(steps):
            _step_and_ask(loop, agent)
        pairs.append({"steps": steps, "saving_s": saving_s, "plain_s": slowest(time.perf_counter() - began)})
    return pairs[1:]


WARM_UP_STEPS = 5


def _step_and_ask(loop: Loop, agent: AgentLine) -> bool:
    """One step; whether rank 0 has an answer from the agent, told to all ranks."""
    loop.train_step()
    answer = torch.tensor([agent.has_answer()], dtype=torch.int32)
    dist.broadcast(answer, 0)
    return bool(answer)


def make_loop(group: Group, report: Callable[[Event], None] | None) -> Loop:
    """With `report`, the loop keeps snapshots for the agent that hears it."""
    torch.set_num_threads(1)
    snapshots = snapshots_of(group.config) if report else None
    loop = Loop(group.config, group.world, group.cache, report or (lambda event: None), Control, snapshots=snapshots)
    loop.build()
    loop.load()
    return loop
