"""Gradients and weights between the ranks of one host, through memory that they share in place of a socket.

gloo sends what it reduces through the loopback's TCP: 18 ms for 26 MB between two ranks, where this takes 7 (benchmarks/results/2026-11-23-speed.md).
DeepSpeed has an operator for shared memory too, which its training does not use; its ranks wait by spinning, which costs those that share a core
with them more than it saves. Here they wait in gloo's barrier, which also notices a rank that is gone.
"""

from __future__ import annotations

import itertools
import mmap
import os
import tempfile
from pathlib import Path
from typing import Any

import deepspeed.comm.comm as deepspeed_comm
import torch
import torch.distributed as dist

PIECE_BYTES = 4 * 2**20
"""Of one rank, twice: while some still read one piece, others write the next."""
LEAST_BYTES = 2**18
"""Below, two barriers cost as much as gloo."""
_FOLDER = Path("/dev/shm")
_ROOM = 4
"""So many times its size has to be free."""


_needed_bytes = 0
_serving: HostCollectives | None = None
"""What serves this rank's DeepSpeed."""


def needed_bytes() -> int:
    """Of the memory file system, that must be free for the next attempt to exchange gradients as this one does: from three ranks on another order
    of sums gives other bits."""
    return _needed_bytes


class HostCollectives:
    """Sums and gathers contiguous CPU tensors in pieces: each rank's area in a file without a name holds two."""

    def __init__(self, areas: torch.Tensor, rank: int) -> None:
        """`areas` [ranks, 2, PIECE_BYTES] of uint8, the same memory for all of them."""
        self._areas, self._rank, self._world_size = areas, rank, len(areas)
        self._turn = 0

    @property
    def num_bytes(self) -> int:
        """Of the memory that is shared."""
        return self._areas.numel()

    def all_reduce(self, tensor: torch.Tensor, scale: float = 1.0) -> None:
        """In place, the sum over ranks times `scale`, added up in the order of ranks: the same bits on all of them. Collective."""
        for piece in torch.split(tensor.view(-1), PIECE_BYTES // tensor.element_size()):
            areas = self._next(piece)
            bounds = [len(piece) * rank // self._world_size for rank in range(self._world_size + 1)]
            parts = [slice(*pair) for pair in itertools.pairwise(bounds)]
            mine, others = parts[self._rank], [rank for rank in range(self._world_size) if rank != self._rank]
            for rank in others:
                areas[self._rank, parts[rank]].copy_(piece[parts[rank]])
            dist.barrier()
            addends = [piece[mine] if rank == self._rank else areas[rank, mine] for rank in range(self._world_size)]
            total = areas[self._rank, mine]
            torch.add(addends[0], addends[1], out=total)
            for addend in addends[2:]:
                total.add_(addend)
            if scale != 1.0:
                total.mul_(scale)  # while it is in the cache
            dist.barrier()
            for rank in range(self._world_size):
                piece[parts[rank]].copy_(areas[rank, parts[rank]])

    def all_gather(self, output: torch.Tensor, tensor: torch.Tensor) -> None:
        """`output` [ranks x len(tensor)] of `tensor`, which may be a view of it. Collective."""
        places = output.view(self._world_size, -1)
        step = PIECE_BYTES // tensor.element_size()
        for start in range(0, tensor.numel(), step):
            piece = tensor.view(-1)[start : start + step]
            areas = self._next(piece)
            areas[self._rank, : len(piece)].copy_(piece)
            dist.barrier()
            for rank in range(self._world_size):
                places[rank, start : start + step].copy_(areas[rank, : len(piece)])

    def _next(self, piece: torch.Tensor) -> torch.Tensor:
        """[ranks, elements] of a piece's dtype: the areas that the piece before last was in, which all have read when a barrier of the last one
        has passed."""
        self._turn = 1 - self._turn
        return self._areas[:, self._turn].view(piece.dtype)


def serve_deepspeed(collectives: HostCollectives) -> None:
    """Puts them in place of the backend's own, for what they can do: sums and gathers of large tensors over all ranks.

    DeepSpeed's backend object is no public API: `tests/trainer/test_host_collectives.py` trains and counts what came through here.
    """
    global _needed_bytes, _serving
    _needed_bytes, _serving = _ROOM * collectives.num_bytes, collectives
    backend: Any = deepspeed_comm.cdb
    plain = type(backend)

    def all_reduce(
        tensor: torch.Tensor, op: Any = deepspeed_comm.ReduceOp.SUM, group: Any = None, async_op: bool = False
    ) -> Any:
        if op != deepspeed_comm.ReduceOp.SUM or not is_ours(group, async_op, tensor):
            return plain.all_reduce(backend, tensor, op, group, async_op)
        return collectives.all_reduce(tensor)

    def all_gather_into_tensor(
        output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any = None, async_op: bool = False
    ) -> Any:
        if not is_ours(group, async_op, input_tensor, output_tensor):
            return plain.all_gather_into_tensor(backend, output_tensor, input_tensor, group, async_op)
        return collectives.all_gather(output_tensor, input_tensor)

    backend.all_reduce, backend.all_gather_into_tensor = all_reduce, all_gather_into_tensor


def is_ours(group: Any, is_async: bool, *tensors: torch.Tensor) -> bool:
    """Whether shared memory serves a collective of these tensors."""
    return (
        not is_async
        and all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)
        and tensors[0].nbytes >= LEAST_BYTES
        and dist.get_world_size(group) == dist.get_world_size()
    )


def average(tensor: torch.Tensor, group: Any) -> None:
    """In place, the sum over the group's ranks and then a share of it: DeepSpeed's way, but for the second pass over memory. Collective."""
    share = 1.0 / dist.get_world_size(group)
    if _serving and is_ours(group, False, tensor):
        _serving.all_reduce(tensor, share)
    else:
        deepspeed_comm.all_reduce(tensor, group=group)
        tensor.mul_(share)


def open_collectives(rank: int, world_size: int) -> HostCollectives | None:
    """None where the ranks are on several hosts, alone, or have no room. Collective. The file has lost its name when this returns: only a kill within
    it leaves one behind."""
    if world_size == 1:
        return None
    size = world_size * 2 * PIECE_BYTES
    name = [_new_file(size) if rank == 0 else ""]
    dist.broadcast_object_list(name, src=0)
    found = _mapped(name[0], size) if name[0] else None
    is_everywhere = torch.tensor(found is not None, dtype=torch.int32)
    dist.all_reduce(is_everywhere, dist.ReduceOp.MIN)
    if rank == 0 and name[0]:
        Path(name[0]).unlink(missing_ok=True)
    if found is None or not int(is_everywhere):
        return None
    return HostCollectives(torch.frombuffer(found, dtype=torch.uint8).view(world_size, 2, PIECE_BYTES), rank)


def _new_file(size: int) -> str:
    """Its path; empty where there is no room. It has all of its memory: a page that is missing later would be a SIGBUS."""
    if not _FOLDER.is_dir():
        return ""
    room = os.statvfs(_FOLDER)
    if room.f_bavail * room.f_frsize < _ROOM * size:
        return ""
    try:
        descriptor, name = tempfile.mkstemp(prefix="zerofleet-ranks-", dir=_FOLDER)
    except OSError:  # nobody may write there
        return ""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError:  # somebody else was quicker
        Path(name).unlink()
        return ""
    finally:
        os.close(descriptor)
    return name


def _mapped(name: str, size: int) -> mmap.mmap | None:
    """None where there is no such file (on another host), or it cannot be had: all ranks do without, then."""
    try:
        with Path(name).open("r+b") as file:
            return mmap.mmap(file.fileno(), size)
    except OSError:
        return None
