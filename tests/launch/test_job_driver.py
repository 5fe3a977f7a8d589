"""The program that a Ray job runs, with the driver itself left out."""

from __future__ import annotations

import fsspec
import pytest

from zerofleet.launch import job_driver
from zerofleet.launch.claims import Handed
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.run_folder import RunFolder


@pytest.fixture(params=["folder", "object store"])
def storage(request, tmp_path):
    if request.param == "folder":
        yield str(tmp_path)
        return
    yield "memory://runs"
    fsspec.filesystem("memory").rm("/runs", recursive=True)


@pytest.fixture
def run_driver(storage, monkeypatch):
    """`run_driver(what drive does)`: exit code, and what the run folder has as the driver's log."""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")

    def run(drive) -> tuple[int, str]:
        monkeypatch.setattr(job_driver, "drive", drive)
        arguments = [storage, "a", "--number", "3", "--after", "2", "--override", "train.steps=9"]
        code = job_driver.main(arguments)
        return code, RunFolder(storage, "a").storage.read("logs/driver-0003.log").decode()

    return run


def test_what_it_was_told_reaches_the_driver_and_what_it_says_the_run_folder(run_driver, storage, capsys):
    told = []

    def drive(*arguments, **more) -> int:
        told.extend([*arguments, more["handed"]])
        print("all is well")
        return 0

    assert run_driver(drive) == (0, "all is well\n")
    assert told == [storage, "a", ["train.steps=9"], Handed(3, 2, "10.0.0.1:6379")]
    assert capsys.readouterr().out == "all is well\n", "the job's own log has it too"


def test_the_users_mistake_is_in_the_log_and_in_the_exit_code(run_driver, capsys):
    def drive(*arguments, **more) -> int:
        raise UserError("data.files matches nothing")

    assert run_driver(drive) == (2, "error: data.files matches nothing\n")
    assert "Traceback" not in capsys.readouterr().err


def test_a_failure_leaves_its_traceback(run_driver):
    def drive(*arguments, **more) -> int:
        raise ZeroDivisionError("one by none")

    code, log = run_driver(drive)
    assert code == 1 and log.endswith("ZeroDivisionError: one by none\n")


def test_outside_a_cluster_it_says_so(monkeypatch, capsys):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert job_driver.main(["/runs", "a", "--number", "1", "--after", "0"]) == 2
    assert "RAY_ADDRESS is not set" in capsys.readouterr().err
