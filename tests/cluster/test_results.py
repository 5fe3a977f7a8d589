"""Results that outlive their agent and their driver."""

from __future__ import annotations

import os
import subprocess

import pytest

from zerofleet.cluster import results
from zerofleet.cluster.results import ResultLog
from zerofleet.cluster.snapshot_writer import remove_snapshots
from zerofleet.trainer.events import Event


def result(step: int) -> Event:
    return Event("step", 1, 0, step, "step", 100.0 + step, 0.5, {"loss": 1.5, "ledger": {"step": step}})


def steps(log: ResultLog) -> list[int]:
    return [event["step"] for event in log.recall()]


def test_the_next_agent_finds_them_in_order_as_they_were(tmp_path):
    log = ResultLog(tmp_path, "r-1")
    assert log.recall() == []
    for step in (1, 2, 3):
        log.append(result(step))
    found = [Event(**fields) for fields in ResultLog(tmp_path, "r-1").recall()]
    assert found == [result(1), result(2), result(3)]
    assert ResultLog(tmp_path, "r-2").recall() == [], "another run of this name knows nothing of them"


def test_the_newest_are_kept_and_no_more_than_twice_as_many(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "MAX_LINES", 4)
    log = ResultLog(tmp_path, "r-1")
    for step in range(1, 12):
        log = log if step % 3 else ResultLog(tmp_path, "r-1")
        log.append(result(step))
        assert steps(log)[-4:] == list(range(max(1, step - 3), step + 1)) and len(steps(log)) <= 8


def test_a_line_that_a_kill_cut_short_is_left_out_and_they_go_with_the_snapshots(tmp_path):
    ResultLog(tmp_path / "run", "r-1").append(result(1))
    with (tmp_path / "run/results-r-1.newer.jsonl").open("a") as file:
        file.write('{"kind": "st')
    log = ResultLog(tmp_path / "run", "r-1")
    log.append(result(2))
    assert steps(log) == [1, 2]
    remove_snapshots(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_line_is_left_out_and_said_once_with_its_file(tmp_path):
    log, told = ResultLog(tmp_path, "r-1"), []
    for step in (1, 2, 3, 4):
        log.append(result(step))
    path = tmp_path / "results-r-1.newer.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"rank":', b'"ranc":')
    lines[2] = b"\xff" + lines[2][1:]
    path.write_bytes(b"".join(lines))
    found = ResultLog(tmp_path, "r-1").recall(lambda *what: told.append(what))
    assert [event["step"] for event in found] == [1, 4]
    ((where, why),) = told
    assert where == path and "line 2 is no result" in why and "ranc" in why


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_without_room_what_is_there_stays_whole(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(tmp_path)], check=True)
    try:
        log, kept = ResultLog(tmp_path, "r-1"), 0
        with pytest.raises(OSError, match="No space left"):
            for kept in range(1000):
                log.append(result(kept))
        with pytest.raises(OSError, match="No space left"):
            log.append(result(kept))
        subprocess.run(["mount", "-o", "remount,size=64k", str(tmp_path)], check=True)
        log.append(result(kept))
        assert steps(ResultLog(tmp_path, "r-1")) == list(range(kept + 1))
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)  # the logs are still open
