"""Saves and restores of checkpoint.py: zerofleet's and torch.distributed.checkpoint's, in turn, on one engine."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
import xxhash
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

from zerofleet.benchmarks.checkpoint_agent import AgentLine, snapshots_of
from zerofleet.benchmarks.checkpoint_ranks import (
    Figures,
    Round,
    WrongState,
    digests_of,
    forget,
    load_ours,
    make_loop,
    require,
    slowest,
    timed,
)
from zerofleet.benchmarks.disk import drop_caches
from zerofleet.benchmarks.peers.dcp import Dcp, State, flat_state, local_parts, sharded_state
from zerofleet.benchmarks.peers.universal import TAG
from zerofleet.benchmarks.rank_group import Group
from zerofleet.trainer.checkpoint.format import Wanted
from zerofleet.trainer.checkpoint.memory import SnapshotReader
from zerofleet.trainer.checkpoint.reader import CheckpointReader
from zerofleet.trainer.checkpoint.save import MemorySaver, Source, make_saver, saved_slots, to_numpy
from zerofleet.trainer.loop import Loop, nothing_to_do
from zerofleet.trainer.run_folder import CheckpointId

PEERS: dict[str, AsyncCheckpointerType | None] = {
    "dcp_save": None,
    "dcp_thread": AsyncCheckpointerType.THREAD,
    "dcp_process": AsyncCheckpointerType.PROCESS,
}

SHARDED_PEERS: dict[str, AsyncCheckpointerType | None] = {
    "dcp_sharded_save": None,
    "dcp_sharded_thread": AsyncCheckpointerType.THREAD,
}
"""Of a state that any world size can load."""

OVERLAPPED = 10**5
"""Added to the numbers of saves that are overlapped, so that no two have the same."""
OVERLAPPED_SHAPE = (1, 128)
"""Sequences and their tokens in the forward pass that runs meanwhile."""


class Arm(Protocol):
    """One way to save and load. All methods are collective."""

    def begin(self, number: int) -> None:
        """The call that saves."""

    def settle(self) -> Any:
        """Returns when the state may change."""

    def finish(self, number: int) -> None:
        """Returns when the state is durable."""

    def remove(self, number: int) -> None:
        """From storage."""


class Ours:
    """Into memory by a rank's own saver; from there by the node agent."""

    def __init__(self, loop: Loop, agent: AgentLine, snapshots: Path) -> None:
        self._loop, self._agent, self._snapshots = loop, agent, snapshots
        source = Source(
            config=loop.config,
            run=loop.folder,
            world=loop.world,
            adapter=loop.adapter,
            fingerprints=loop.fingerprints,
            quarantine=loop.record.quarantine,
            losses=loop.losses,
            report=agent.report,
            alive=lambda: None,
            start_step=loop.record.start_step,
        )
        saver = make_saver(source, snapshots, loop.record.token, nothing_to_do)
        if not isinstance(saver, MemorySaver):
            raise MemoryError("there is no room for two snapshots in memory: free some, or enlarge /dev/shm")
        self._saver = saver

    def checkpoint(self, number: int) -> CheckpointId:
        return CheckpointId(number, self._loop.world.attempt, self._loop.world.silo)

    def begin(self, number: int) -> None:
        self._saver.save(number, True, [])

    def settle(self) -> float:
        return self._saver.settle()

    def finish(self, number: int) -> None:
        self._agent.wait(number)

    def remove(self, number: int) -> None:
        if dist.get_rank() == 0:
            shutil.rmtree(self._loop.folder.storage.local_path(f"checkpoints/step-{number:08d}"))

    def read(self, number: int) -> None:
        """From storage into the engine's own buffers, verified by its hashes: what `dcp.load` does, and no more."""
        reader = CheckpointReader(self._loop.folder.storage, self.checkpoint(number))
        slots = self._loop.adapter.slots()
        reader.fill([Wanted(slot.name, slot.kind, slot.start, to_numpy(slot.view)) for slot in slots])

    def load(self, number: int) -> dict[str, str]:
        """From storage. Returns the digests."""
        open_reader = functools.partial(CheckpointReader, self._loop.folder.storage, self.checkpoint(number))
        return load_ours(self._loop, open_reader, self.checkpoint(number))

    def recall(self, number: int) -> dict[str, str]:
        """From this node's memory. Returns the digests."""
        loop, readers = self._loop, []

        def open_reader() -> SnapshotReader:
            arguments = (self._snapshots, self.checkpoint(number), loop.world.world_size, loop.record.token)
            readers.append(SnapshotReader(*arguments))
            return readers[0]

        try:
            return load_ours(loop, open_reader, self.checkpoint(number))
        finally:
            for reader in readers:
                reader.close()


def measure_saves(group: Group, num_rounds: int, root: Path, is_cold: bool) -> dict[str, Any] | None:
    """Rounds of saves and loads by every arm; the first is not counted. Leaves a checkpoint of ours (its step is in the
    result) and one of DeepSpeed in `root` for measure_resizes. Without `is_cold` the page cache stays as it is."""
    loop = make_loop(group, None)
    loop.train_step()
    ours = Ours(loop, AgentLine(group), snapshots_of(group.config))
    state = flat_state(loop.engine)
    peers = {name: Dcp(state, root / name, kind) for name, kind in PEERS.items()}
    overlapped = Dcp(state, root / "overlapped", AsyncCheckpointerType.PROCESS, is_overlapped=True)
    cut = sharded_state(loop.adapter)
    sharded = Sharded(cut, {name: Dcp(cut, root / name, kind) for name, kind in SHARDED_PEERS.items()})
    trials = SaveTrials(loop, ours, peers, sharded, overlapped, is_cold)
    rounds = [trials.run_round(number) for number in range(1, num_rounds + 2)]
    for peer in [*peers.values(), *sharded.peers.values(), overlapped]:
        peer.close()
    last = num_rounds + 2
    trials.save(ours, last)
    loop.engine.save_checkpoint(str(root / "deepspeed"), tag=TAG)
    total = torch.tensor([sum(tensor.nbytes for tensor in state.values())])
    dist.all_reduce(total)
    dist.barrier()
    return {"rounds": rounds[1:], "state_bytes": int(total), "step": last, "digests": trials.wanted}


class Sharded:
    """The peers that save one state cut as FSDP2 cuts it."""

    def __init__(self, state: State, peers: dict[str, Dcp]) -> None:
        self._state, self.peers = state, peers
        self._wanted = self._digests()

    def load_s(self, peer: Dcp, number: int) -> float:
        """Seconds of `dcp.load` into memory that holds nothing. Raises WrongState unless it brings back what was saved."""
        for part in local_parts(self._state):
            part.zero_()
        seconds = timed(lambda: peer.load(number))
        if self._digests() != self._wanted:
            raise WrongState("dcp.load of a sharded state: not what was saved")
        return seconds

    def _digests(self) -> list[int]:
        return [xxhash.xxh3_64_intdigest(part.numpy().data) for part in local_parts(self._state)]


class SaveTrials:
    """Trials of all arms on one engine, whose state stays what it is. All methods are collective."""

    def __init__(
        self, loop: Loop, ours: Ours, peers: dict[str, Dcp], sharded: Sharded, overlapped: Dcp, is_cold: bool
    ) -> None:
        self._loop, self._ours, self._peers, self._overlapped, self._is_cold = loop, ours, peers, overlapped, is_cold
        self._sharded = sharded
        self.wanted = digests_of(loop)

    def run_round(self, number: int) -> Round:
        """One trial of every arm, in an order that is turned around from round to round."""
        trials: list[tuple[str, Callable[[], Figures]]] = [("zerofleet", lambda: self._our_trial(number))]
        for name, peer in self._peers.items():
            trials.append((name, functools.partial(self._peer_trial, name, peer, number)))
        for name, peer in self._sharded.peers.items():
            trials.append((name, functools.partial(self._sharded_trial, name, peer, number)))
        overlapped: dict[str, Arm] = {
            "zerofleet_overlapped": self._ours,
            "dcp_process_overlapped": self._overlapped,
        }
        for name, arm in overlapped.items():
            trials.append((name, functools.partial(self._overlapped_trial, arm, OVERLAPPED + number)))
        found = {name: trial() for name, trial in trials[:: 1 if number % 2 else -1]}
        found["memcpy"] = {"stall_s": _memcpy_s(self._loop)}
        return found

    def save(self, arm: Arm, number: int) -> Figures:
        """`stall_s`: until the state may change, with nothing overlapped. `durable_s`: until all is on the disk."""
        self._empty_caches()
        began = time.perf_counter()
        arm.begin(number)
        arm.settle()
        settled = time.perf_counter()
        arm.finish(number)
        finished = time.perf_counter()
        return {"stall_s": slowest(settled - began), "durable_s": slowest(finished - began)}

    def _overlapped_trial(self, arm: Arm, number: int) -> Figures:
        """`stall_s`: how long a rank does nothing else, where a forward pass runs between the call and the moment when the
        state must be taken. `cost_s`: what the rank loses in all, that the pass takes longer than alone included."""
        self._empty_caches()
        began = time.perf_counter()
        arm.begin(number)
        begun = time.perf_counter()
        self._forward()
        passed = time.perf_counter()
        arm.settle()
        settled = time.perf_counter()
        arm.finish(number)
        arm.remove(number)
        alone_s = timed(self._forward)
        return {
            "stall_s": slowest(begun - began + settled - passed),
            "forward_s": slowest(passed - begun),
            "alone_s": alone_s,
            "cost_s": slowest(settled - began) - alone_s,
        }

    def _forward(self) -> None:
        with torch.no_grad():
            self._loop.engine.module(input_ids=torch.zeros(OVERLAPPED_SHAPE, dtype=torch.int64))

    def _our_trial(self, number: int) -> Figures:
        """`load_*` reads and verifies; `restore_*` is all that a rank does before it trains, proof by digests included."""
        ours, figures = self._ours, self.save(self._ours, number)
        figures["restore_memory_s"] = self._restored("memory", lambda: ours.recall(number))
        for name, load_state in (("load", ours.read), ("restore", ours.load)):
            self._empty_caches()
            for temperature in ("cold_", ""):
                what = f"zerofleet {name} {temperature}"
                figures[f"{name}_{temperature}s"] = self._restored(what, functools.partial(load_state, number))
        ours.remove(number)
        return figures

    def _peer_trial(self, name: str, peer: Dcp, number: int) -> Figures:
        """`load_*` is `dcp.load` alone; `restore_*` also brings the weights that forward uses in line with it. What was saved
        asynchronously is the same on the disk, and is only read back."""
        figures = self.save(peer, number)
        self._empty_caches()
        for temperature in ("cold_", "") if name == "dcp_save" else ("cold_",):
            load_s = self._restored(f"{name} {temperature}", lambda: peer.load(number))
            if name == "dcp_save":
                figures[f"load_{temperature}s"] = load_s
                figures[f"restore_{temperature}s"] = load_s + timed(self._loop.adapter.refresh)
        peer.remove(number)
        return figures

    def _sharded_trial(self, name: str, peer: Dcp, number: int) -> Figures:
        """As `_peer_trial`; with FSDP2 a restore is no more than the load."""
        figures = self.save(peer, number)
        self._empty_caches()
        for temperature in ("cold_", "") if name == "dcp_sharded_save" else ("cold_",):
            load_s = self._sharded.load_s(peer, number)
            if name == "dcp_sharded_save":
                figures[f"load_{temperature}s"] = load_s
        peer.remove(number)
        return figures

    def _restored(self, what: str, load_state: Callable[[], Any]) -> float:
        """Seconds of a load into an engine that has nothing. Raises WrongState unless it brings back what was saved."""
        forget(self._loop)
        seconds = timed(load_state)
        require(what, digests_of(self._loop), self.wanted)
        return seconds

    def _empty_caches(self) -> None:
        if dist.get_rank() == 0 and self._is_cold:
            drop_caches()
        dist.barrier()


def _memcpy_s(loop: Loop) -> float:
    """A plain copy of what a rank saves into memory that it has already touched."""
    views = [to_numpy(slot.saved_view()) for slot in saved_slots(loop.adapter)]
    targets = [np.full_like(view, 1) for view in views]

    def copy() -> None:
        for target, view in zip(targets, views, strict=True):
            np.copyto(target, view)

    return timed(copy)
