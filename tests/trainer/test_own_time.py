"""A rank's own time: sections of a step by the clock that the device and the ZeRO stage allow."""

from __future__ import annotations

import hashlib
import os
import threading
import time

import pytest
import torch

from zerofleet.trainer import own_time as module
from zerofleet.trainer.own_time import DeviceTime, HostTime, NoTime, awake_clock, own_time

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Ticks:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def spend(seconds: float) -> None:
    """On the processor."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_a_step_is_the_sum_of_its_sections_each_by_its_clock_and_what_does_not_end_does_not_count():
    wall, awake = Ticks(), Ticks()
    own = HostTime(wall, awake)
    for _ in range(2):
        own.alone()
        wall.now, awake.now = wall.now + 0.25, awake.now + 0.125
        own.among_others()
        wall.now, awake.now = wall.now + 9.0, awake.now + 1.0
        own.stop()
        wall.now, awake.now = wall.now + 5.0, awake.now + 5.0
    own.alone()
    wall.now += 5.0
    assert own.take() == {"own_s": 2.5}
    own.stop()
    assert own.take() == {"own_s": 0.0}, "the next step has begun"


def test_without_a_clock_for_it_work_among_others_does_not_count():
    wall = Ticks()
    own = HostTime(wall, None)
    own.alone()
    wall.now = 1.0
    own.among_others()
    wall.now = 3.0
    own.stop()
    assert own.take() == {"own_s": 1.0}


def test_the_awake_clock_counts_work_and_no_sleep():
    clock = awake_clock()
    began = clock()
    time.sleep(0.2)
    slept_s = clock() - began
    spend(0.1)
    assert slept_s < 0.1 <= clock() - began


def hash_for(seconds: float, core: int) -> None:
    """On one core, without the interpreter's lock."""
    os.sched_setaffinity(0, {core})
    data, end = bytes(1_000_000), time.thread_time() + seconds
    while time.thread_time() < end:
        hashlib.sha256(data)


def test_the_awake_clock_counts_waiting_for_a_core():
    core = min(os.sched_getaffinity(0))
    found: list[float] = []

    def measure() -> None:
        clock = awake_clock()
        began, began_s = clock(), time.perf_counter()
        hash_for(0.2, core)
        found.extend([clock() - began, time.perf_counter() - began_s])

    threads = [threading.Thread(target=measure), threading.Thread(target=hash_for, args=(0.2, core))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    awake_s, wall_s = found
    assert awake_s > 1.3 * 0.2, "two threads took turns"
    assert awake_s == pytest.approx(wall_s, rel=0.3)


class FakeEvent:
    """torch.cuda.Event on a clock of its own, in milliseconds."""

    now_ms = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at_ms = FakeEvent.now_ms

    def elapsed_time(self, end: FakeEvent) -> float:
        return end.at_ms - self.at_ms


def test_on_a_gpu_it_is_the_device_s_time(monkeypatch):
    monkeypatch.setattr(module.torch.cuda, "Event", FakeEvent)
    own = DeviceTime()
    for begin, middle, end in [(1.0, 3.0, 3.5), (4.0, 4.5, 9.0)]:
        FakeEvent.now_ms = begin
        own.alone()
        FakeEvent.now_ms = middle
        own.among_others()
        FakeEvent.now_ms = end
        own.stop()
    own.alone()
    assert own.take() == {"own_s": 0.0025}
    own.stop()
    assert own.take() == {"own_s": 0.0}


@pytest.mark.parametrize(
    ("device", "stage", "kind"),
    [(CPU, 0, HostTime), (CPU, 2, HostTime), (CPU, 3, HostTime), (GPU, 2, DeviceTime), (GPU, 3, NoTime)],
)
def test_what_is_measured_where(device, stage, kind):
    assert isinstance(own_time(device, stage), kind)


@pytest.mark.parametrize(("stage", "sees_sleep"), [(1, True), (3, False)])
def test_on_a_cpu_sleep_alone_is_seen_up_to_stage_2_and_work_always(stage, sees_sleep):
    own = own_time(CPU, stage)
    own.alone()
    time.sleep(0.1)
    own.among_others()
    time.sleep(0.2)  # the others are slow
    own.stop()
    assert (0.05 < own.take()["own_s"] < 0.2) == sees_sleep
    own.alone()
    spend(0.05)
    own.among_others()
    spend(0.05)
    own.stop()
    assert own.take()["own_s"] >= 0.1


def test_where_nothing_tells_nothing_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_SCHEDSTAT", tmp_path / "absent")
    own = own_time(CPU, 3)
    own.alone()
    own.among_others()
    own.stop()
    assert own.take() == {}
    assert "own_s" in own_time(CPU, 1).take(), "alone it can be measured all the same"
