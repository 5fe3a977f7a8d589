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


def test_a_step_is_the_sum_of_its_sections_and_what_is_not_closed_does_not_count():
    clock = Ticks()
    own = HostTime(clock)
    for begin, end in [(1.0, 1.25), (3.0, 3.5)]:
        clock.now = begin
        own.resume()
        clock.now = end
        own.pause()
    clock.now = 7.0
    own.resume()
    assert own.take() == {"own_s": 0.75}
    clock.now = 10.0
    own.resume()
    clock.now = 11.0
    own.pause()
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
    for begin, end in [(1.0, 3.0), (4.0, 4.5)]:
        FakeEvent.now_ms = begin
        own.resume()
        FakeEvent.now_ms = end
        own.pause()
    own.resume()
    assert own.take() == {"own_s": 0.0025}
    assert own.take() == {"own_s": 0.0}


@pytest.mark.parametrize(
    ("device", "stage", "kind"),
    [(CPU, 0, HostTime), (CPU, 2, HostTime), (CPU, 3, HostTime), (GPU, 2, DeviceTime), (GPU, 3, NoTime)],
)
def test_what_is_measured_where(device, stage, kind):
    assert isinstance(own_time(device, stage), kind)


@pytest.mark.parametrize(("stage", "sees_sleep"), [(1, True), (3, False)])
def test_on_a_cpu_sleep_is_seen_up_to_stage_2(stage, sees_sleep):
    own = own_time(CPU, stage)
    own.resume()
    time.sleep(0.1)
    own.pause()
    assert (own.take()["own_s"] > 0.05) == sees_sleep


def test_where_nothing_tells_nothing_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_SCHEDSTAT", tmp_path / "absent")
    own = own_time(CPU, 3)
    own.resume()
    own.pause()
    assert own.take() == {}
