"""The smoke test of the image, on this machine: what it would say of an image that lacks something."""

from __future__ import annotations

import os
import subprocess

import pytest

from zerofleet.cluster.config import Check
from zerofleet.launch import image_check
from zerofleet.trainer import ops


@pytest.fixture
def good(monkeypatch, tmp_path):
    """A machine as the image should be."""
    monkeypatch.setattr(image_check.os, "getuid", lambda: 1000)
    monkeypatch.setattr(image_check, "COMMANDS", ("bash",))
    monkeypatch.setattr(ops, "is_built", lambda op: True)
    monkeypatch.setattr(ops, "extensions_root", lambda: tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(image_check.shutil, "which", lambda name: None if name == "python" else f"/bin/{name}")
    monkeypatch.setattr(image_check, "packages", lambda: Check("ok", "packages", "all"))


def failed() -> list[str]:
    return [check.name for check in image_check.examine() if check.level == "fail"]


def test_nothing_fails_where_nothing_lacks(good):
    assert failed() == []
    assert image_check.main([]) == 0


def test_each_lack_is_named(good, monkeypatch, tmp_path):
    with monkeypatch.context() as lacking:
        lacking.setattr(image_check.os, "getuid", lambda: 0)
        assert failed() == ["user"]
    with monkeypatch.context() as lacking:
        lacking.setattr(image_check, "COMMANDS", ("bash", "wget"))
        lacking.setattr(image_check.shutil, "which", lambda name: None if name == "wget" else f"/bin/{name}")
        said = [check.text for check in image_check.examine() if check.level == "fail"]
        assert (
            said[0].startswith("missing on the PATH: wget.") and "`python` is /bin/python" in said[1] and len(said) == 2
        )
    with monkeypatch.context() as lacking:
        lacking.setattr(ops, "is_built", lambda op: False)
        assert failed() == ["ops"]
    with monkeypatch.context() as lacking:
        lacking.setattr(ops, "extensions_root", lambda: tmp_path / "not-there")
        assert failed() == ["folders"]
    with monkeypatch.context() as lacking:
        lacking.setattr(image_check.metadata, "version", lambda name: "2.59.0")
        assert failed() == ["ray"]
        assert image_check.main([]) == 1


def test_training_that_fails_is_told_with_its_last_words(monkeypatch):
    asked = []

    def run(command, **options):
        asked.append(command)
        return subprocess.CompletedProcess(command, 2, "", "error: no room\n")

    monkeypatch.setattr(image_check.subprocess, "run", run)
    assert image_check.train() == Check("fail", "training", "exit code 2: error: no room")
    assert "train.steps=3" in asked[0] and not os.path.exists(asked[0][-1].partition("=")[2])


@pytest.mark.integration
@pytest.mark.further
@pytest.mark.timeout(600)
def test_it_trains_here():
    check = image_check.train()
    assert check.level == "ok", check.text
