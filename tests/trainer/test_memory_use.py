"""What only this process has, and how often it is looked at."""

from __future__ import annotations

import mmap

import torch

from zerofleet.trainer import memory_use
from zerofleet.trainer.memory_use import SHARE, MemoryUse, highest_own_bytes
from zerofleet.trainer.residence import Residence


def test_of_this_process():
    before = highest_own_bytes()
    size = before + (1 << 26)  # more than it has had resident before
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as mapped:
        for page in range(0, size, mmap.PAGESIZE):
            mapped[page] = 1
    after = highest_own_bytes()
    assert before + (1 << 25) < after < before + 1.1 * size, "though it was given back"


def test_a_look_takes_a_small_share_of_the_time(monkeypatch):
    now, looks = [100.0], []

    def slow() -> int:
        looks.append(now[0])
        now[0] += 0.25
        return 5

    monkeypatch.setattr(memory_use, "highest_own_bytes", slow)
    use = MemoryUse(torch.device("cpu"), lambda: now[0])
    assert use.take() == {"memory_bytes": 5} and use.take() == {}
    now[0] += SHARE * 0.25
    assert use.take() == {"memory_bytes": 5} and len(looks) == 2


def test_what_the_kernel_does_not_tell_is_left_out(monkeypatch):
    def absent(pid: str) -> Residence:
        raise FileNotFoundError("smaps_rollup")

    monkeypatch.setattr(Residence, "of", absent)
    assert MemoryUse(torch.device("cpu")).take() == {}
