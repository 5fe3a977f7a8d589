"""Collectives through shared memory, between real processes: sums, gathers, who takes part, and DeepSpeed's use of them."""

from __future__ import annotations

import functools
import os
from collections import Counter
from pathlib import Path

import pytest

from tests.support.ranks import CONTEXT, Plan, job, run_attempt
from zerofleet.trainer.world import free_port

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


def run(work, world_size: int) -> list:
    """What `work(rank)` returns on every rank of a gloo group."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with CONTEXT.Pool(world_size) as pool:
        return pool.starmap(_in_group, [(work, rank, world_size, address) for rank in range(world_size)], chunksize=1)


def _in_group(work, rank, world_size, address):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.update(address)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    found = work(rank, world_size)
    dist.destroy_process_group()
    return found


def _values(rank, size, dtype):
    import torch

    return torch.randn(size, generator=torch.Generator().manual_seed(rank)).to(dtype)


def _reduce_and_gather(rank, world_size):
    """Whether every sum and gather is right to the bit, in turns that use both halves of the areas."""
    import torch

    from zerofleet.trainer import host_collectives
    from zerofleet.trainer.host_collectives import open_collectives

    host_collectives.PIECE_BYTES = 4096
    collectives = open_collectives(rank, world_size)
    right = []
    for turn in range(6):
        for size, dtype in ((1, torch.float32), (1024, torch.float32), (5003, torch.float32), (4097, torch.bfloat16)):
            of_all = [_values(100 * turn + other, size, dtype) for other in range(world_size)]
            summed = of_all[rank].clone()
            collectives.all_reduce(summed)
            right.append(torch.equal(summed, functools.reduce(torch.add, of_all)))
            whole = torch.zeros(world_size * size, dtype=dtype)
            mine = whole[rank * size : (rank + 1) * size]
            mine.copy_(of_all[rank])
            collectives.all_gather(whole, mine)
            right.append(torch.equal(whole, torch.cat(of_all)))
    return right


@pytest.mark.parametrize("world_size", [2, 3])
def test_sums_are_in_the_order_of_ranks_and_gathers_are_whole(world_size):
    before = set(os.listdir("/dev/shm"))
    for right in run(_reduce_and_gather, world_size):
        assert len(right) == 48 and all(right)
    assert not {name for name in set(os.listdir("/dev/shm")) - before if name.startswith("zerofleet-ranks-")}


def _on_another_host(rank, world_size):
    from zerofleet.trainer import host_collectives

    if rank == 1:
        host_collectives._mapped = lambda name, size: None
    return host_collectives.open_collectives(rank, world_size) is None


def _without_room(rank, world_size):
    from zerofleet.trainer import host_collectives

    host_collectives._ROOM = 2**40
    return host_collectives.open_collectives(rank, world_size) is None


def _without_shared_memory(rank, world_size):
    from zerofleet.trainer import host_collectives

    host_collectives._FOLDER = Path("/no-such-folder")
    return host_collectives.open_collectives(rank, world_size) is None


def _without_permission(rank, world_size):
    from zerofleet.trainer import host_collectives

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    if rank == 0:
        host_collectives.tempfile.mkstemp = refuse
    return host_collectives.open_collectives(rank, world_size) is None


def _without_address_space(rank, world_size):
    from zerofleet.trainer import host_collectives

    def refuse(*arguments, **options):
        raise OSError(12, "Cannot allocate memory")

    if rank == 1:
        host_collectives.mmap.mmap = refuse
    return host_collectives.open_collectives(rank, world_size) is None


@pytest.mark.parametrize(
    "work", [_on_another_host, _without_room, _without_shared_memory, _without_permission, _without_address_space]
)
def test_all_ranks_take_part_or_none(work):
    assert run(work, 2) == [True, True]


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "fp32"), (1, "bf16"), (2, "bf16")])
def test_deepspeed_sends_its_gradients_through_them(tmp_path, tiny_corpus, tiny_cache, stage, precision):
    """And the losses are those of gloo, to the bit: with two ranks there is one order to add in."""
    settings = {"train__zero_stage": stage, "train__precision": precision, "train__steps": 3}
    log = tmp_path / "log"
    shared = run_attempt(
        job(tmp_path / "shared", tiny_corpus, **settings), tiny_cache, 2, Plan(least_shared_bytes=1, shared_log=log)
    )
    assert not shared.errors, shared.errors
    counts = Counter(log.read_text().split())
    assert counts["all_reduce"] >= 2 * 3, "a sum per rank and step at least"
    assert stage == 0 or counts["all_gather"] >= 2 * 3
    gloo = run_attempt(job(tmp_path / "gloo", tiny_corpus, **settings), tiny_cache, 2, Plan(least_shared_bytes=2**40))
    assert not gloo.errors, gloo.errors
    assert shared.losses() == gloo.losses()
