"""What a step waits for, and that it is counted once."""

from __future__ import annotations

import sys
import time
import types

import pytest

from zerofleet.trainer.waits import Waits, compile_clock, host_clocks, paging_clock


def slow(count: int, seconds: float):
    for number in range(count):
        time.sleep(seconds)
        yield number


def test_the_waiting_for_each_batch_is_counted_and_the_work_with_it_is_not():
    waits = Waits(lambda: 0.0, {})
    seen = []
    for batch in waits.of(slow(3, 0.01)):
        time.sleep(0.05)
        seen.append(batch)
    taken = waits.take()
    assert seen == [0, 1, 2] and 0.03 <= taken["data_s"] < 0.1
    assert waits.take() == {"data_s": 0.0, "stall_s": 0.0}, "each step has its own"


def test_clocks_that_moved_are_told_and_only_their_step():
    now = {"compile_s": 5.0, "paging_s": 7.0}
    waits = Waits(lambda: 0.25, {name: lambda name=name: now[name] for name in now})
    assert waits.take() == {"data_s": 0.0, "stall_s": 0.25}
    now["compile_s"] = 6.5
    assert waits.take() == {"data_s": 0.0, "stall_s": 0.25, "compile_s": 1.5}
    assert "compile_s" not in waits.take()


def test_the_kernels_account_of_paging(tmp_path):
    path = tmp_path / "memory"
    path.write_text(
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n"
    )
    clock = paging_clock(path)
    assert clock is not None and clock() == 1.5
    assert paging_clock(tmp_path / "absent") is None
    assert "paging_s" not in host_clocks(local_rank=1), "one rank of a host says it"


def test_the_compilers_account(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._dynamo.utils", None)
    assert compile_clock() == 0.0, "nothing has been compiled, and nothing is imported for it"
    counted = types.SimpleNamespace(cumulative_time_spent_ns={"entire_frame_compile": 2.5e9, "backend_compile": 1e9})
    monkeypatch.setitem(sys.modules, "torch._dynamo.utils", counted)
    assert compile_clock() == 2.5


@pytest.mark.integration
@pytest.mark.timeout(60)
def test_torch_counts_what_it_compiles():
    import torch

    before = compile_clock()
    torch.compile(lambda x: x * 2 + 1, backend="eager")(torch.ones(3))
    assert compile_clock() > before
