"""A silo's environment file in a run as a user starts it: it reaches that silo's driver and ranks, no other silo, and no file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from tests.integration.test_silos import SilosCli, events_of
from tests.support.cli import wait_for_end, wait_for_step

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

TOKEN = "tok-5f2c91aa07"
FUNCTIONS = """
import os

def told(text):
    print("the token is", os.environ.get("SILO_TOKEN", "not here"))
    return text
"""


def environment_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def test_a_silos_credentials_reach_its_driver_and_ranks_and_are_in_no_file(tmp_path, tiny_corpus):
    cli = SilosCli(tmp_path / "place", tiny_corpus)
    (tmp_path / "functions").mkdir()
    (tmp_path / "functions/zf_told.py").write_text(FUNCTIONS)
    path = tmp_path / "a.env"
    path.write_text(f"SILO_TOKEN={TOKEN}\n")
    path.chmod(0o600)
    sections = yaml.safe_load(cli.recipe.read_text())
    sections["silos"]["members"]["a"]["environment_file"] = str(path)
    sections["data"]["scrub"] = "zf_told:told"
    cli.recipe.write_text(yaml.safe_dump(sections))
    done = cli.submit("known", "--detach", PYTHONPATH=f"{os.environ.get('PYTHONPATH', '')}:{tmp_path / 'functions'}")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {}
    for name in "ab":
        silo = cli.silo("known", name)
        wait_for_step(silo, 1)
        pids = [e.data["pid"] for e in silo.events() if e.kind == "phase" and e.phase == "init" and "pid" in e.data]
        found[name] = [TOKEN.encode() in environment_of(pid) for pid in pids]
    assert found == {"a": [True, True], "b": [False]}
    assert wait_for_end(cli, "known") == "FINISHED"
    logs = {name: cli.silo("known", name).storage.local_path("logs/driver-0001.log").read_text() for name in "ab"}
    assert "the token is ***" in logs["a"] and "the token is not here" in logs["b"]
    assert events_of(cli.run("known"), "round"), "the run went on as any"
    files = [file for file in cli.storage.rglob("*") if file.is_file()]
    assert [str(file) for file in files if TOKEN.encode() in file.read_bytes()] == []
