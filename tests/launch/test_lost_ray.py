"""What becomes of a driver whose Ray is lost."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from zerofleet.launch.lost_ray import judge_loss
from zerofleet.trainer.events import DRIVER, Event


def loss(at: float, step: int) -> Event:
    data = judge_loss([], 0.0, -9, step, 3)
    return Event("verdict", 1, DRIVER, step, "running", at, data=data)


def test_a_first_loss_is_no_end():
    data = judge_loss([], 0.0, -9, 12, max_failures=3)
    assert (data["class"], data["action"]) == ("node", "retry")
    assert data["sentence"].startswith(
        "the run's own Ray was lost: its head process was killed by SIGKILL. Starting another"
    )
    assert "ended with exit code 1" in judge_loss([], 0.0, 1, 12, 3)["sentence"]


@pytest.mark.parametrize(
    ("before", "action"),
    [
        ([], "retry"),
        ([loss(5.0, 12)], "retry"),
        ([loss(5.0, 12), loss(6.0, 12)], "stop"),
        ([loss(5.0, 10), loss(6.0, 11)], "retry"),
        ([loss(1.0, 12), loss(2.0, 12)], "retry"),
    ],
)
def test_losses_without_a_new_step_between_them_stop(before, action):
    """At most one without progress; what was before second 3 is another driver's."""
    assert judge_loss(before, 3.0, -9, 12, max_failures=2)["action"] == action


SCRIPT = """
import os, sys, time
from zerofleet.trainer.process_id import ProcessId
print(ProcessId.own(), sys.argv[1:], flush=True)
if "AGAIN" not in os.environ:
    os.environ["AGAIN"] = "1"
    import threading
    from zerofleet.launch.lost_ray import begin_anew
    threading.Thread(target=begin_anew).start()
    time.sleep(60)
"""


@pytest.mark.integration
@pytest.mark.timeout(60)
def test_the_program_begins_anew_in_the_same_process_whatever_its_other_threads_do(tmp_path):
    (tmp_path / "program.py").write_text(SCRIPT)
    command = [sys.executable, "-u", "-m", "program", "a b", "--c"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == second and first.endswith("['a b', '--c']")
