"""Stacks of other processes: running, waiting in a collective, in C code, stopped, ended, and strangers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from zerofleet.cluster.agent import NodeAgent
from zerofleet.cluster.host import process_state
from zerofleet.cluster.spec import AttemptSpec, JobSpec, NodeSpec
from zerofleet.cluster.stacks import SIGNAL, RankStack, dump_stacks, enable_dumps, is_in_collective
from zerofleet.trainer.config import ModelConfig, TrainConfig
from zerofleet.trainer.world import World, free_port

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]


@contextlib.contextmanager
def forked(*bodies):
    """Processes that have called enable_dumps (unless the body says no) and run a body for ever."""
    pids = []
    try:
        for body in bodies:
            ready, told = os.pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    if not getattr(body, "is_stranger", False):
                        enable_dumps()
                    os.write(told, b"x")
                    body()
                finally:
                    os._exit(1)
            os.close(told)
            pids.append(pid)
            assert os.read(ready, 1) == b"x"
            os.close(ready)
        yield pids
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def reads_a_slow_disk() -> None:
    while True:
        time.sleep(60)


def waits_in_c() -> None:
    """Holds the interpreter lock for ever: no Python code runs in this process any more, in any thread."""
    import ctypes

    ctypes.PyDLL(None).pause()
    while True:
        ctypes.PyDLL(None).pause()


def has_a_second_thread() -> None:
    threading.Thread(target=copies_a_snapshot, daemon=True).start()
    reads_a_slow_disk()


def copies_a_snapshot() -> None:
    time.sleep(60)


def is_a_stranger() -> None:
    signal.signal(SIGNAL, signal.SIG_DFL)
    reads_a_slow_disk()


is_a_stranger.is_stranger = True


def computes() -> None:
    while True:
        pass


def wait_for_state(pid: int, letter: str) -> None:
    deadline = time.monotonic() + 10
    while process_state(pid) != letter:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def wait_until_blocked(pid: int) -> None:
    deadline, mark = time.monotonic() + 10, f"{1 << (SIGNAL - 1):016x}"
    while f"SigBlk:\t{mark}" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def wait_until_in(pid: int, function: str) -> RankStack:
    """Until a process is there; what it shows then."""
    deadline = time.monotonic() + 10
    while not (found := dump_stacks({0: pid}, timeout_s=5)[0]).innermost.endswith(f" {function}"):
        assert time.monotonic() < deadline, found
    return found


def test_where_processes_are_without_asking_them():
    with forked(reads_a_slow_disk, computes) as (reading, computing):
        wait_until_in(reading, "reads_a_slow_disk")
        wait_until_in(computing, "computes")
        began = time.monotonic()
        found = dump_stacks({0: reading, 1: computing}, timeout_s=5)
        assert time.monotonic() - began < 10
        assert found[0].innermost.endswith(" reads_a_slow_disk") and found[1].innermost.endswith(" computes")
        assert (found[0].state, found[0].is_in_collective) == ("S", False)
        assert (found[1].state, found[1].is_in_collective) == ("R", False)
        assert "in forked" in found[0].text, "the whole stack, not its end alone"


def test_asking_again_gives_the_new_stack_only():
    with forked(reads_a_slow_disk) as (pid,):
        first = wait_until_in(pid, "reads_a_slow_disk")
        second = dump_stacks({0: pid}, timeout_s=5)[0]
        assert first.text == second.text
        assert second.text.count("most recent call first") == 1


def test_a_process_in_c_code_that_never_comes_back():
    with forked(waits_in_c) as (pid,):
        wait_until_in(pid, "waits_in_c")
        assert wait_until_in(pid, "waits_in_c").state == "S", "again, and it is still there"


def test_the_main_thread_comes_first():
    with forked(has_a_second_thread) as (pid,):
        wait_until_in(pid, "reads_a_slow_disk")
        deadline = time.monotonic() + 10
        while "copies_a_snapshot" not in (found := dump_stacks({0: pid}, timeout_s=5)[0]).text:
            assert time.monotonic() < deadline
        assert found.innermost.endswith(" reads_a_slow_disk")
        assert found.text.index("reads_a_slow_disk") < found.text.index("copies_a_snapshot")


def test_of_a_stopped_process_the_kernel_tells_and_nobody_waits_for_it():
    with forked(reads_a_slow_disk) as (pid,):
        os.kill(pid, signal.SIGSTOP)
        wait_for_state(pid, "T")
        began = time.monotonic()
        (found,) = dump_stacks({7: pid}, timeout_s=5).values()
        assert time.monotonic() - began < 5
        assert (found.state, found.is_in_collective, found.innermost) == ("T", None, "")
        assert "State: T (stopped)" in found.text
        os.kill(pid, signal.SIGCONT)
        wait_until_in(pid, "reads_a_slow_disk")


def test_a_process_that_blocks_the_signal_costs_the_timeout_and_no_more():
    def deaf() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {SIGNAL})
        reads_a_slow_disk()

    with forked(deaf, reads_a_slow_disk) as (first, second):
        wait_until_blocked(first)
        wait_until_in(second, "reads_a_slow_disk")
        began = time.monotonic()
        found = dump_stacks({0: first, 1: second}, timeout_s=0.5)
        assert 0.5 <= time.monotonic() - began < 5.0
        assert found[0].is_in_collective is None and "State: S" in found[0].text
        assert found[1].is_in_collective is False


def test_a_stranger_with_a_ranks_number_is_left_alone():
    with forked(is_a_stranger) as (pid,):
        found = dump_stacks({0: pid}, timeout_s=5)[0]
        assert found.is_in_collective is None
        time.sleep(0.05)
        assert process_state(pid) == "S", "the signal would have ended it"


def test_a_process_that_has_gone():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert dump_stacks({0: pid}, timeout_s=5)[0] == RankStack("", "the process has ended")


GLOO = """
import os, sys, time
import torch.distributed as dist, torch
from zerofleet.cluster.stacks import enable_dumps
rank = int(sys.argv[1])
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[2], GLOO_SOCKET_IFNAME="lo")
enable_dumps()
dist.init_process_group("gloo", rank=rank, world_size=2)
dist.barrier()
def decodes_an_image():
    print("ready", flush=True)
    time.sleep(600)
if rank == 1:
    decodes_an_image()
print("ready", flush=True)
dist.all_reduce(torch.ones(4))
"""


def test_who_waits_in_a_collective_for_whom():
    command = [sys.executable, "-c", GLOO]
    environment, port = os.environ | {"OMP_NUM_THREADS": "1"}, free_port()
    ranks = [
        subprocess.Popen([*command, str(rank), str(port)], stdout=subprocess.PIPE, env=environment) for rank in range(2)
    ]
    try:
        assert [rank.stdout.readline() for rank in ranks] == [b"ready\n"] * 2
        pids, deadline = {number: rank.pid for number, rank in enumerate(ranks)}, time.monotonic() + 10
        while not (found := dump_stacks(pids, timeout_s=5))[0].is_in_collective:
            assert time.monotonic() < deadline, found[0].text
        assert found[1].is_in_collective is False and found[1].innermost.endswith(" decodes_an_image")
        assert all(rank.poll() is None for rank in ranks), "the collective survives the signal"
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


# -- ranks of an agent ----------------------------------------------------------------------------------------------
def sleep_or_stop(config, world, cache_path, report, control, fault, snapshots) -> None:
    """Rank 0 reads a slow disk, rank 1 is stopped."""
    if world.rank:
        os.kill(os.getpid(), signal.SIGSTOP)
    reads_a_slow_disk()


CONFIG = TrainConfig(
    model=ModelConfig(config={"model_type": "llama"}),
    data={"files": ["python-stdlib"]},
    train={"steps": 1, "global_batch_size": 1, "micro_batch_size": 1},
).model_dump_json()


def test_an_agent_tells_what_its_ranks_do_from_the_moment_that_they_are_forked(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    agent = NodeAgent(NodeSpec("r", 0, "cpu", str(tmp_path), str(tmp_path), preload=""))
    job = JobSpec("r", CONFIG, "/nowhere", "tests.cluster.test_stacks:sleep_or_stop")
    try:
        assert agent.stacks(1.0) == {}
        worlds = tuple(World(rank, rank, 0, 2, "a", 1) for rank in range(2))
        agent.start(AttemptSpec(job, 1, worlds, "rank", "127.0.0.1", agent.free_port()))
        deadline = time.monotonic() + 20
        while True:  # asked all along, and none of them dies of it
            began = time.monotonic()
            found = agent.stacks(0.5)
            assert time.monotonic() - began < 6
            assert not [event for event in agent.poll(0.0) if event.kind in ("exit", "error")]
            if len(found) == 2 and "reads_a_slow_disk" in found[0].innermost and "State: T (stopped)" in found[1].text:
                break
            assert time.monotonic() < deadline, found
        assert (found[0].is_in_collective, found[1].is_in_collective, found[1].state) == (False, None, "T")
        assert agent.kill()[1] == []
        assert agent.stacks(1.0) == {}
    finally:
        agent.close(keep_snapshots=False)


HEAD = "Current thread 0x00007f0000000001 (most recent call first):\n"
SITE = "/venv/lib/python3.11/site-packages"


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([(f"{SITE}/torch/distributed/distributed_c10d.py", "all_reduce")], True),
        ([(f"{SITE}/deepspeed/comm/torch.py", "all_gather_into_tensor")], True),
        (
            [
                (f"{SITE}/deepspeed/utils/nvtx.py", "wrapped_fn"),
                (f"{SITE}/deepspeed/runtime/zero/partition_parameters.py", "wait"),
            ],
            True,
        ),
        ([("/work/trainer/exchange.py", "exchange")], True),
        ([("/work/cluster/rank.py", "_await_rank_zero")], True),
        ([("/work/trainer/data/feed.py", "wait")], False),
        ([(f"{SITE}/torch/nn/functional.py", "linear"), ("/work/trainer/loop.py", "_loss")], False),
        ([(f"{SITE}/torch/nn/functional.py", "linear")] * 6 + [(f"{SITE}/torch/distributed/x.py", "f")], False),
    ],
)
def test_what_counts_as_waiting_for_others(frames, expected):
    text = HEAD + "".join(f'  File "{file}", line 3 in {function}\n' for file, function in frames)
    assert is_in_collective(text) is expected


def test_backwards_own_thread_may_be_the_one_that_waits():
    main = '  File "/x/torch/autograd/graph.py", line 1 in _engine_run_backward\n'
    backward = '  File "/x/torch/distributed/distributed_c10d.py", line 1 in reduce_scatter\n'
    assert is_in_collective(f"Thread 0x00007f02 (most recent call first):\n{backward}\n{HEAD}{main}")
