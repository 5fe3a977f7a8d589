"""Saving, as a rank does it: fragments to a place that keeps them, and a word to whoever commits.

Three ways, one interface (`Saver`). Into memory: a thread copies the fragments to a snapshot buffer while the next forward
and backward run (masters and moments change in the optimizer's step only), and the node agent writes them out. Straight to
storage, where memory is short: the step waits for the disk. Under torchrun there is nobody else: rank 0 commits too.
"""

from __future__ import annotations

import functools
import platform
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from zerofleet.trainer.checkpoint.adapters import DTYPE_NAMES, Adapter, Slot
from zerofleet.trainer.checkpoint.buffer_set import BufferSet
from zerofleet.trainer.checkpoint.buffers import NO_BUFFERS, Buffers, NodeMemory, plan_buffers
from zerofleet.trainer.checkpoint.commit import Draft, Fragments, Written, assemble, commit, partial_digests
from zerofleet.trainer.checkpoint.format import write_rank_file
from zerofleet.trainer.checkpoint.fragments import FragmentKey
from zerofleet.trainer.checkpoint.memory import node_memory
from zerofleet.trainer.checkpoint.snapshot import SnapshotMeta
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.data.order import step_positions
from zerofleet.trainer.data.quarantine import Ranges, union
from zerofleet.trainer.errors import CheckpointUnusable, StorageError, Superseded
from zerofleet.trainer.events import Event, Report
from zerofleet.trainer.exchange import agree
from zerofleet.trainer.host_collectives import needed_bytes
from zerofleet.trainer.probe import PROBE_TOKENS
from zerofleet.trainer.run_folder import CheckpointId, RunFolder
from zerofleet.trainer.spikes import RecentLosses
from zerofleet.trainer.world import World

BUFFER_TIMEOUT_S = 120.0
"""How long the last save of a run waits for a buffer: the writer has earlier ones to finish, or storage is down."""
_SIGN_S = 1.0
"""Between two signs of life while a snapshot is waited for."""


class Saver(Protocol):
    """Takes the state of this rank. All ranks call the same method at the same step."""

    is_background: bool
    """Whether `save` returns before the state is taken: then it is safe when every rank has passed `settle`."""

    has_buddy: bool
    """Whether another node can keep a copy of this one's snapshots."""

    has_room: bool
    """Whether it can while another snapshot is on its way to storage."""
    has_third: bool
    """Whether a rank has more than the two buffers that take turns."""

    def save(
        self,
        step: int,
        durable: bool,
        recent: Sequence[Event],
        replicate: bool = False,
        waits: bool = False,
        probe_loss: float | None = None,
    ) -> None:
        """Takes the state after `step` steps; with `durable` it is to reach storage, with `replicate` the node's buddy, where
        there is one. `recent` is kept beside it: what the newest steps had to say, in case nobody hears it. With `waits`, where
        every buffer is being read, it waits for one; else this step is not kept. `probe_loss` goes into the manifest."""

    def settle(self) -> float:
        """To be called before the optimizer changes the state: returns when it has been taken, with the seconds of waiting."""


@dataclass(frozen=True)
class Source:
    """Where a rank's state comes from, and what a manifest says of it besides."""

    config: TrainConfig
    run: RunFolder
    world: World
    adapter: Adapter
    fingerprints: dict[str, str]
    quarantine: Ranges
    losses: RecentLosses
    report: Report
    alive: Callable[[], None]
    start_step: int
    """What the attempt began from."""

    def checkpoint(self, step: int) -> CheckpointId:
        return CheckpointId(step, self.world.attempt, self.world.silo)

    def draft(self, step: int, probe_loss: float | None) -> Draft | None:
        """Rank 0's part of the manifest."""
        if self.world.rank:
            return None
        return Draft(
            zero_stage=self.config.train.zero_stage,
            precision=self.config.train.precision,
            position=int(step_positions(step, self.config.train.global_batch_size, self.quarantine)[0]),
            quarantine=union(self.quarantine),
            scalars=self.adapter.scalars(),
            tensors=self.adapter.tensors(),
            fingerprints=self.fingerprints,
            versions=versions(),
            recent_losses=self.losses.values(),
            probe_loss=probe_loss,
            probe_tokens=PROBE_TOKENS,
        )

    def event(self, kind: str, step: int, start: float, duration_s: float, **data: Any) -> None:
        self.report(Event(kind, self.world.attempt, self.world.rank, step, "save", start, duration_s, data))


@functools.cache
def versions() -> dict[str, str]:
    """Of what computes. Looked up once: each takes milliseconds on the disk, and a snapshot is taken at every step."""
    packages = ("zerofleet", "torch", "deepspeed", "transformers")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def make_saver(source: Source, folder: Path | None, token: str, before_commit: Callable[[], None]) -> Saver:
    """To memory where there is an agent and room for two buffers, else straight to storage; says which. Collective."""
    if folder is None:
        return DirectSaver(source, functools.partial(publish_to_rank_zero, source, before_commit))
    direct = DirectSaver(source, functools.partial(publish_to_agent, source))
    if source.config.checkpoint.snapshot_interval_steps == 0:
        return direct
    plan, buffers = _reserve_buffers(source, folder)
    return direct if plan == NO_BUFFERS else MemorySaver(source, buffers, plan, token)


def _reserve_buffers(source: Source, folder: Path) -> tuple[Buffers, BufferSet]:
    """As many buffers as every node has room for, the memory of its own ranks' taken. Collective."""
    world = source.world
    mine = sum(key_of(slot).num_bytes for slot in saved_slots(source.adapter))
    every: list[tuple[int, int, NodeMemory]] = [None] * world.world_size  # type: ignore[list-item]
    memory = node_memory(folder)
    memory = replace(memory, free_shm_bytes=max(0, memory.free_shm_bytes - needed_bytes()))
    dist.all_gather_object(every, (world.node_rank, mine, memory))
    sizes: dict[int, int] = {}
    for node, size, _ in every:
        sizes[node] = sizes.get(node, 0) + size
    largest, has_buddy = max(sizes.values()), len(sizes) > 1
    plan = min(plan_buffers(memory, largest, has_buddy) for _, _, memory in every)
    buffers, problem = BufferSet(folder, world.rank, plan.own), ""
    if plan != NO_BUFFERS:
        try:
            buffers.reserve(mine)
        except StorageError as error:
            problem = str(error)
    problems: list[str] = [""] * world.world_size
    dist.all_gather_object(problems, problem)
    plan = NO_BUFFERS if any(problems) else plan
    if world.rank == 0:
        _say_where(source, plan, largest, [memory for _, _, memory in every])
    return plan, buffers


def _say_where(source: Source, plan: Buffers, largest: int, memories: list[NodeMemory]) -> None:
    size = f"{largest / 2**20:,.0f} MiB per node each"
    free_shm, free = min(m.free_shm_bytes for m in memories), min(m.free_bytes for m in memories)
    room = f"{free_shm / 2**20:,.0f} MiB of /dev/shm and {free / 2**20:,.0f} MiB of memory are free"
    if plan != NO_BUFFERS:
        replicas = f" and {plan.replicas} for a buddy's replicas" if plan.replicas else ""
        message = f"snapshots in memory: {plan.own} buffers{replicas}, {size} ({room})"
        return source.event("info", 0, time.time(), 0.0, message=message)
    message = f"no room for snapshots in memory ({size}; {room}): every checkpoint is written while the ranks wait"
    source.event("incident", 0, time.time(), 0.0, message=message, **{"class": "memory"})


class MemorySaver:
    """Snapshots for a node agent."""

    is_background = True

    def __init__(self, source: Source, buffers: BufferSet, plan: Buffers, token: str) -> None:
        self._source, self._buffers, self._token = source, buffers, token
        self.has_buddy, self.has_room, self.has_third = plan.replicas > 0, plan.can_keep, plan.own > 2
        self._thread: threading.Thread | None = None
        self._problem: BaseException | None = None

    def save(
        self,
        step: int,
        durable: bool,
        recent: Sequence[Event],
        replicate: bool = False,
        waits: bool = False,
        probe_loss: float | None = None,
    ) -> None:
        self.settle()
        source, world, start = self._source, self._source.world, time.time()
        draft = source.draft(step, probe_loss)
        meta = SnapshotMeta(
            step=step,
            attempt=world.attempt,
            silo=world.silo,
            rank=world.rank,
            world_size=world.world_size,
            token=self._token,
            start_step=source.start_step,
            draft=draft.to_dict() if draft else None,
            events=[vars(event) for event in recent],
        )
        arguments = (meta, saved_slots(source.adapter), durable, replicate and self.has_buddy, waits, start)
        self._thread = threading.Thread(target=self._copy_or_say_why, args=arguments, name="snapshot", daemon=True)
        self._thread.start()

    def settle(self) -> float:
        if self._thread is None:
            return 0.0
        began = time.perf_counter()
        while self._thread.is_alive():
            self._thread.join(_SIGN_S)
            self._source.alive()
        self._thread = None
        if self._problem is not None:
            raise self._problem
        return time.perf_counter() - began

    def _copy_or_say_why(self, *arguments: Any) -> None:
        try:
            self._copy(*arguments)
        except BaseException as error:  # noqa: BLE001 - raised by settle, in the rank's own thread
            self._problem = error

    def _copy(
        self, meta: SnapshotMeta, slots: list[Slot], durable: bool, replicate: bool, waits: bool, start: float
    ) -> None:
        keys, wait_s = [key_of(slot) for slot in slots], BUFFER_TIMEOUT_S if waits else 0.0
        with self._buffers.fill(meta, keys, durable and self.has_room, wait_s) as buffer:
            if buffer is not None:
                for target, slot in zip(buffer.pieces, slots, strict=True):
                    np.copyto(target, to_numpy(slot.saved_view()).view(np.uint8))
        path = str(buffer.path) if buffer is not None else None
        data = {"path": path, "durable": durable, "replicate": replicate, "checkpoint": asdict(meta.checkpoint)}
        told = {"world_size": meta.world_size, "bytes": sum(key.num_bytes for key in keys), **data}
        self._source.event("snapshot", meta.step, start, time.time() - start, **told)


class DirectSaver:
    """Straight to storage: the ranks wait until their files are there. `publish` says so to whoever commits."""

    is_background = False
    has_buddy = has_room = has_third = False

    def __init__(self, source: Source, publish: Callable[[int, Written | None, Exception | None], None]) -> None:
        self._source, self._publish = source, publish

    def save(
        self,
        step: int,
        durable: bool,
        recent: Sequence[Event],
        replicate: bool = False,
        waits: bool = False,
        probe_loss: float | None = None,
    ) -> None:
        if not durable:
            return
        source, world = self._source, self._source.world
        fragments: Fragments = [(key_of(slot), to_numpy(slot.saved_view())) for slot in saved_slots(source.adapter)]
        checkpoint = source.checkpoint(step)
        written: Written | None = None
        problem: Exception | None = None
        try:
            arguments = (source.run.storage, checkpoint, world.rank, world.world_size, fragments, source.alive)
            rank_file = write_rank_file(*arguments)
            digests = partial_digests(fragments)
            written = Written(
                checkpoint, world.rank, world.world_size, rank_file, digests, source.draft(step, probe_loss)
            )
        except (StorageError, FileExistsError) as error:
            problem = error
        self._publish(step, written, problem)

    def settle(self) -> float:
        return 0.0


def publish_to_agent(source: Source, step: int, written: Written | None, problem: Exception | None) -> None:
    """An event for whoever commits; training goes on whether storage took the file or not."""
    if written is not None:
        source.event("written", step, time.time(), 0.0, **written.to_dict())
    else:
        checkpoint = asdict(source.checkpoint(step))
        source.event("unwritten", step, time.time(), 0.0, checkpoint=checkpoint, message=str(problem))


def publish_to_rank_zero(
    source: Source,
    before_commit: Callable[[], None],
    step: int,
    written: Written | None,
    problem: Exception | None,
) -> None:
    """Rank 0 commits. Collective. Raises on every rank what any rank ran into."""
    world, start, began = source.world, time.time(), time.perf_counter()
    try:
        agree(problem)
    except StorageError:
        # All ranks have written by now. What is there is of no use, and the disk may be full.
        if world.rank == 0:
            source.run.storage.remove(source.checkpoint(step).folder)
        raise
    parts: list[Written] = [None] * world.world_size  # type: ignore[list-item]
    dist.all_gather_object(parts, written)
    if world.rank == 0:
        try:
            manifest = assemble(parts)
            commit(source.config.checkpoint, source.run, manifest, before_commit)
            path = source.checkpoint(step).folder
            source.event("checkpoint", step, start, time.perf_counter() - began, path=path, bytes=manifest.num_bytes)
        except (StorageError, FileExistsError, CheckpointUnusable, Superseded) as error:
            problem = error
    agree(problem)


def saved_slots(adapter: Adapter) -> list[Slot]:
    """The slots of which this rank saves something."""
    return [slot for slot in adapter.slots() if slot.save_end > slot.save_start]


def key_of(slot: Slot) -> FragmentKey:
    """What this rank saves of a slot."""
    length = slot.save_end - slot.save_start
    return FragmentKey(slot.name, slot.kind, slot.save_start, length, DTYPE_NAMES[slot.view.dtype])


def to_numpy(tensor: torch.Tensor) -> npt.NDArray[np.generic]:
    """The tensor's bytes in the numpy dtype that carries them (fragments.DTYPES); shares memory on the CPU."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    elif tensor.dtype == torch.bool:
        tensor = tensor.view(torch.uint8)
    return tensor.numpy()
