"""What a figure was measured on."""

from __future__ import annotations

import os

from zerofleet.launch import environment
from zerofleet.launch.environment import fingerprint


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7})
    assert fingerprint()["cores"] == 3


def test_gpus_are_told_with_their_driver(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "_NVIDIA", tmp_path)
    assert fingerprint()["accelerators"] == []
    for number in range(2):
        (tmp_path / "gpus" / str(number)).mkdir(parents=True)
        (tmp_path / "gpus" / str(number) / "information").write_text("Model: \t\t NVIDIA H100\nIRQ: 7\n")
    assert fingerprint()["accelerators"] == ["NVIDIA H100"] * 2
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build\nGCC version: gcc 12\n"
    )
    assert fingerprint()["accelerators"] == ["NVIDIA H100 (driver 580.82.07)"] * 2
