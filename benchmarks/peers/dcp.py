"""The peer torch.distributed.checkpoint: the same fp32 state of a DeepSpeed engine by `save`, `async_save` and `load`.

The state comes in two forms. Flat: what ZeRO-1 keeps, per rank, parameter group and kind one partition, as plain tensors under names of their
own: few and large, with nothing to plan, which is the fastest that the library can be given; no other world size could load it. Sharded: per
parameter and kind a DTensor, cut along its first dimension, as FSDP2 keeps it and torchtitan saves it: like ours, any world size can load it.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, AsyncSaveResponse, async_save, save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from zerofleet.benchmarks.disk import fsync_tree
from zerofleet.trainer.checkpoint.adapters import Adapter
from zerofleet.trainer.checkpoint.save import saved_slots

State = dict[str, torch.Tensor]


def flat_state(engine: Any) -> State:
    """Masters and moments of this rank, in the engine's own buffers."""
    optimizer = engine.optimizer.optimizer
    found: State = {}
    for index, group in enumerate(optimizer.param_groups):
        (partition,) = group["params"]
        tensors = {"master": partition.data, **{kind: optimizer.state[partition][kind] for kind in MOMENTS}}
        found |= {f"rank-{dist.get_rank()}/group-{index}/{kind}": tensor for kind, tensor in tensors.items()}
    return found


MOMENTS = ("exp_avg", "exp_avg_sq")


def sharded_state(adapter: Adapter) -> State:
    """A copy of the same masters and moments, as DTensors. Collective."""
    mesh, found = init_device_mesh("cpu", (dist.get_world_size(),)), State()
    slots = {(slot.name, slot.kind): slot for slot in saved_slots(adapter)}
    for name, tensor in adapter.tensors().items():
        for kind in tensor.kinds:
            whole = torch.zeros(math.prod(tensor.shape))
            if slot := slots.get((name, kind)):
                whole[slot.save_start : slot.save_end] = slot.saved_view()
            dist.all_reduce(whole)
            found[f"{kind}/{name}"] = distribute_tensor(whole.view(tensor.shape), mesh, [Shard(0)])
    return found


def local_parts(state: State) -> Iterable[torch.Tensor]:
    """What this rank holds of a sharded state, in its own memory."""
    return (tensor.to_local() for tensor in state.values() if isinstance(tensor, DTensor))


class Dcp:
    """One way to save. Collective, all of it."""

    def __init__(
        self, state: State, root: Path, kind: AsyncCheckpointerType | None, is_overlapped: bool = False
    ) -> None:
        """`kind` None saves while the ranks wait. What is staged is staged into memory that is kept from save to save, and
        for a process is shared with it: copies are then as fast as the library makes them. With `is_overlapped` a thread
        copies; else `begin` does."""
        self._state, self._root, self._kind = state, root, kind
        self._stager: DefaultStager | None = None
        if kind is not None:
            is_shared = kind is AsyncCheckpointerType.PROCESS
            # The other two need a GPU.
            self._stager = DefaultStager(StagingOptions(False, is_shared, is_overlapped, False))
        self._staged: Future[Any] | None = None
        self._saved: Future[Any] | None = None

    def folder(self, number: int) -> Path:
        return self._root / f"save-{number}"

    def begin(self, number: int) -> None:
        where = str(self.folder(number))
        if self._kind is None:
            save(self._state, checkpoint_id=where)
            return
        answer = async_save(
            self._state, checkpoint_id=where, async_checkpointer_type=self._kind, async_stager=self._stager
        )
        if isinstance(answer, AsyncSaveResponse):
            self._staged, self._saved = answer.staging_completion, answer.upload_completion
        else:
            self._saved = answer

    def settle(self) -> None:
        """Returns when the state may change."""
        if self._staged is not None:
            self._staged.result()
            self._staged = None

    def finish(self, number: int) -> None:
        """Returns when the files are whole and on the disk."""
        if self._saved is not None:
            self._saved.result()
            self._saved = None
        dist.barrier()
        if dist.get_rank() == 0:
            fsync_tree(self.folder(number))

    def remove(self, number: int) -> None:
        if dist.get_rank() == 0:
            shutil.rmtree(self.folder(number))

    def load(self, number: int) -> None:
        """Into the engine's own buffers."""
        load(self._state, checkpoint_id=str(self.folder(number)))

    def close(self) -> None:
        if self._stager is not None:
            self._stager.close()
