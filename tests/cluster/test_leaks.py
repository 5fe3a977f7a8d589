"""What dead drivers leave on a machine is found, and what lives is left out. Without a Ray."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from zerofleet.cluster import leaks, local
from zerofleet.cluster.local import Leftover
from zerofleet.trainer import host_collectives
from zerofleet.trainer.checkpoint.buffer_set import BufferSet
from zerofleet.trainer.checkpoint.fragments import FragmentKey
from zerofleet.trainer.checkpoint.snapshot import SnapshotMeta
from zerofleet.trainer.process_id import ProcessId

GONE = replace(ProcessId.own(), pid=2**22 + 1)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Its temporary directory and its memory are folders of the test."""
    monkeypatch.setattr(local, "_short_temp", lambda: tmp_path)
    monkeypatch.setattr(leaks, "temporary_roots", lambda: {tmp_path})
    return tmp_path


def found(machine) -> list[str]:
    checks = list(leaks.local_leaks(machine / "shm"))
    assert {check.level for check in checks} <= {"warn"}
    return [f"{check.name}: {check.text}" for check in checks]


def snapshot(machine, name: str, step: int) -> None:
    folder = machine / f"shm/zerofleet-{os.getuid()}/{name}"
    key = FragmentKey("w", "master", 0, 2**18, "F32")
    with BufferSet(folder, 0, 2).fill(SnapshotMeta(step, 1, "main", 0, 1, "token"), [key], False) as filling:
        filling.pieces[0].view(np.float32)[:] = step


def test_nothing_is_found_where_nothing_is(machine):
    assert found(machine) == []


def test_a_local_ray_is_told_with_its_processes_when_its_driver_is_gone(machine):
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"],
        start_new_session=True,
        stdout=subprocess.PIPE,
    )
    try:
        process.stdout.readline()
        for name, owner in (("live", ProcessId.own()), ("dead", GONE)):
            (machine / f"zf-{name}").mkdir()
            Leftover(machine / f"zf-{name}", f"run-{name}", owner, ProcessId.of(process.pid)).write()
        (line,) = found(machine)
        assert line.startswith(
            f"local Ray: of run run-dead, whose driver (process {GONE.pid}) is gone: 1 processes with "
        )
        assert line.endswith(f"in {machine}/zf-dead. zerofleet doctor") and process.poll() is None
        assert float(line.partition("with ")[2].partition(" MiB")[0]) > 1
    finally:
        process.kill()
        process.wait()


def test_snapshots_that_no_process_uses_are_told_with_their_size(machine):
    snapshot(machine, "first-run-0123456789abcdef", 40)
    (line,) = found(machine)
    assert line.startswith("snapshots: snapshots of run first-run (up to step 40), which no process uses: 1.")
    assert "zerofleet resume first-run goes on from them" in line
    command = shlex.split(line.partition("Without that: ")[2])
    assert command[:2] == ["rm", "-r"]
    subprocess.run(command, check=True)
    assert found(machine) == []


def test_snapshots_in_use_are_left_out_unless_only_a_leaked_ray_uses_them(machine):
    snapshot(machine, "first-0123456789abcdef", 40)
    folder = machine / f"shm/zerofleet-{os.getuid()}/first-0123456789abcdef"
    script = (
        f"import time; f = open({str(folder / 'results-a.newer.jsonl')!r}, 'ab'); print(flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True, stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        assert leaks.users_of([folder])[folder] == {process.pid}
        assert found(machine) == []
        (machine / "zf-dead").mkdir()
        Leftover(machine / "zf-dead", "first", GONE, ProcessId.of(process.pid)).write()
        assert [line.partition(":")[0] for line in found(machine)] == ["local Ray", "snapshots"]
    finally:
        process.kill()
        process.wait()


def test_what_killed_ranks_would_have_shared_is_told_unless_ranks_are_starting_with_it(machine):
    path = machine / "shm/zerofleet-ranks-abc"
    path.parent.mkdir()
    path.write_bytes(b"x" * 2**20)
    assert found(machine) == []
    os.utime(path, (time.time() - 70,) * 2)
    with path.open("rb"):
        assert found(machine) == []
    (line,) = found(machine)
    assert line == f"shared memory: {path}, of ranks that were killed while they started: 1.0 MiB of memory. rm {path}"


def test_the_files_that_ranks_share_are_named_as_they_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(host_collectives, "_FOLDER", tmp_path)
    path = Path(host_collectives._new_file(4096))
    assert path.parent == tmp_path and path.name.startswith(leaks.TEMP_PREFIX)


def test_old_folders_of_ours_are_told_and_others_left(machine):
    for name in ("zerofleet-first-abc", "zerofleet-new", "zf-dead", "zf-somebody", "other"):
        (machine / name).mkdir()
        (machine / name / ("head.log" if name == "zf-dead" else "log")).write_text("x" * 10_000)
        if name != "zerofleet-new":
            for path in (machine / name, *(machine / name).iterdir()):
                os.utime(path, (0, time.time() - leaks.LEAST_AGE_S - 60))
    lines = found(machine)
    assert [line.partition(",")[0] for line in lines] == [
        f"temporary: {machine}/{name}" for name in ("zerofleet-first-abc", "zf-dead")
    ]
    assert lines[0].endswith(f"rm -r {machine}/zerofleet-first-abc")
    with (machine / "zerofleet-first-abc/log").open():
        assert len(found(machine)) == 1
