"""The recovery benchmark's arithmetic, what it reads from run folders, and a whole trial of something that recovers in a moment."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from json import dumps

import pytest
import yaml

from zerofleet.benchmarks.peers import common
from zerofleet.benchmarks.peers.common import Line, read_lines, steps_file
from zerofleet.benchmarks.peers.systems import SYSTEMS, Zerofleet, corpus, job
from zerofleet.benchmarks.recovery import BARS, FIGURES, KILL_STEPS, draw_plans, ratios, summary
from zerofleet.benchmarks.recovery_trial import MARK, Kill, Plan, TrialError, measure, run_trial
from zerofleet.launch.config import parse_job
from zerofleet.trainer.events import DRIVER, Event
from zerofleet.trainer.run_folder import RunFolder

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]


def life(first_pid, start, steps, seconds=1.0):
    """Both ranks finish `steps`, one each `seconds`, the first at `start`."""
    return [
        Line(start + i * seconds, rank, first_pid + rank, step) for i, step in enumerate(steps) for rank in range(2)
    ]


class TestMeasure:
    def test_nothing_repeated(self):
        lines = life(10, 105.0, [1, 2, 3]) + life(20, 112.0, [4, 5])
        trial = measure(lines, started_at=100.0, kill=Kill(11, 107.5))
        assert (trial.cold_start_s, trial.recovery_s, trial.median_step_s) == (5.0, 4.5, 1.0)
        assert (trial.newest_step, trial.first_step_after, trial.repeated_steps) == (3, 4, 0)

    def test_steps_done_again_are_no_recovery(self):
        lines = life(10, 105.0, [1, 2, 3, 4]) + life(20, 112.0, [3, 4, 5])
        trial = measure(lines, started_at=100.0, kill=Kill(11, 108.2))
        assert (trial.recovery_s, trial.repeated_steps) == (pytest.approx(5.8), 2)

    def test_what_a_survivor_finishes_late_is_no_recovery(self):
        lines = [*life(10, 101.0, [1, 2]), Line(103.3, 0, 10, 3)]
        assert measure(lines, 100.0, Kill(11, 103.0)) is None
        trial = measure(lines + life(20, 110.0, [3, 4]), 100.0, Kill(11, 103.0))
        assert (trial.newest_step, trial.repeated_steps, trial.recovery_s) == (3, 1, 8.0)

    def test_a_killed_rank_that_is_heard_of_later_counts_as_before(self):
        rank_0 = [line for line in life(10, 101.0, [1, 2]) + life(20, 110.0, [3, 4]) if line.rank == 0]
        trial = measure([*rank_0, Line(103.2, 1, 11, 3)], 100.0, Kill(11, 103.0))
        assert (trial.newest_step, trial.repeated_steps, trial.recovery_s) == (3, 1, 8.0)

    def test_not_yet(self):
        assert measure(life(10, 101.0, [1, 2, 3]), 100.0, Kill(11, 103.5)) is None
        assert measure(life(10, 101.0, [1, 2, 3]) + life(20, 110.0, [3]), 100.0, Kill(11, 103.5)) is None


def a_round(ours_s, **peers_s):
    done = {name: {"recovery_s": s, "cold_start_s": 2 * s, "repeated_steps": 0} for name, s in peers_s.items()}
    return {"kill_step": 9, "zerofleet": {"recovery_s": ours_s, "cold_start_s": ours_s, "repeated_steps": 0}, **done}


def test_ratios_compare_trials_of_one_round_and_leave_failed_ones_out():
    rounds = [a_round(1.0, ray_train=20.0, torchrun=10.0), a_round(2.0, ray_train=80.0, torchrun=10.0)]
    rounds[1]["torchrun"] = {"error": "no new step"}
    assert ratios(rounds, "recovery_s", "ray_train") == [1 / 20, 1 / 40]
    assert ratios(rounds, "recovery_s", "torchrun") == [1 / 10]
    found = summary(rounds)
    assert found["systems"]["torchrun"]["failed_trials"] == 1
    assert found["systems"]["ray_train"]["median_recovery_s"] == 50.0
    assert found["ratios"]["recovery_s over torchrun"]["rounds"] == 1


def test_a_bar_is_met_by_the_median():
    rounds = [a_round(s, ray_train=20.0, torchrun=20.0) for s in (1.0, 1.1, 3.0)]
    found = summary(rounds)["ratios"]
    assert found["recovery_s over ray_train"]["met"] is False
    assert found["recovery_s over torchrun"]["met"] is True
    assert found["cold_start_s over torchrun"]["met"] is None


def test_bars_name_figures_and_systems():
    assert {figure for figure, _ in BARS} == set(FIGURES)
    assert {peer for _, peer in BARS} | {Zerofleet.name} == set(SYSTEMS)


def test_plans_are_drawn_by_the_seed():
    plans = draw_plans(50, seed=3)
    assert plans == draw_plans(50, seed=3) != draw_plans(50, seed=4)
    assert {plan.kill_step for plan in plans} == set(range(KILL_STEPS[0], KILL_STEPS[1] + 1))


def test_a_line_that_was_cut_short_is_left_out(tmp_path):
    whole = dumps(asdict(Line(1.5, 0, 10, 1)))
    steps_file(tmp_path).write_text(f"{whole}\n{whole[:20]}")
    assert read_lines(tmp_path) == [Line(1.5, 0, 10, 1)]


def test_zerofleet_trains_what_the_peers_train(tmp_path):
    resolved = parse_job(yaml.safe_dump(job(tmp_path)), "the recipe")
    assert resolved.model.config == common.MODEL
    assert resolved.train.global_batch_size == common.MICRO_BATCH_SIZE * resolved.cluster.world_size
    assert resolved.checkpoint.snapshot_interval_steps == 1


def test_the_corpus_is_the_same_every_time():
    assert corpus(num_documents=3) == corpus(num_documents=3)
    assert corpus(num_documents=3).count("\n") == 3


def write_run(folder, *events):
    run = RunFolder(str(folder / "runs"), "recovery")
    streams = {}
    for event in events:
        key = ("metrics" if event.kind == "step" else "events", event.attempt)
        streams.setdefault(key, run.writer(*key)).append(event.to_json())


def test_zerofleet_says_its_steps_by_its_run_folder(tmp_path):
    verdict = {"sentence": "rank 1 on node vm, in phase save after step 2, was killed (SIGKILL)"}
    write_run(
        tmp_path,
        *(Event("phase", 1, rank, 0, "init", 1.0, data={"pid": 10 + rank}) for rank in range(2)),
        Event("step", 1, 0, 1, "step", 2.0, 0.5),
        Event("verdict", 1, DRIVER, 2, "recovering", 5.0, data=verdict),
        *(Event("phase", 2, rank, 0, "init", 6.0, data={"pid": 20 + rank}) for rank in range(2)),
        Event("step", 2, 0, 2, "step", 7.0, 0.5),
    )
    system = Zerofleet()
    assert system.pid(tmp_path, 1) == 11
    assert sorted(system.lines(tmp_path), key=lambda line: line.time) == [
        Line(2.5, 0, 10, 1),
        Line(5.0, 1, 11, 2),
        Line(7.5, 0, 20, 2),
    ]


def test_before_the_run_folder_is_there_zerofleet_has_done_nothing(tmp_path):
    assert Zerofleet().lines(tmp_path) == []


FAKE = """
import json, os, signal, sys, time
path = sys.argv[1] + "/steps.jsonl"

def rank_process(rank, step):
    with open(path, "a") as file:
        while True:
            time.sleep(0.02)
            step += 1
            line = {"time": time.time(), "rank": rank, "pid": os.getpid(), "step": step}
            file.write(json.dumps(line) + chr(10))
            file.flush()

step = 0
while True:
    pids = []
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            rank_process(rank, step)
        pids.append(pid)
    dead, _ = os.wait()
    survivor = next(pid for pid in pids if pid != dead)
    os.kill(survivor, signal.SIGKILL)
    os.waitpid(survivor, 0)
    if sys.argv[2] == "gives up":
        time.sleep(60)
    step = max(json.loads(line)["step"] for line in open(path)) - 1
"""


class Fake:
    """Two processes that count, and a parent that starts both again one step back; or that gives up."""

    name = "fake"

    def __init__(self, mode):
        self.mode, self.stopped = mode, False

    def command(self, folder):
        (folder / "fake.py").write_text(FAKE)
        return [sys.executable, str(folder / "fake.py"), str(folder), self.mode]

    def lines(self, folder):
        return read_lines(folder)

    def pid(self, folder, rank):
        return next(line.pid for line in read_lines(folder) if line.rank == rank)

    def stop(self, folder):
        self.stopped = True


def test_a_trial_kills_measures_and_ends_everything(tmp_path):
    system = Fake("goes on")
    trial = run_trial(system, tmp_path, Plan(kill_step=5, delay_s=0.03))
    pids = {line.pid for line in read_lines(tmp_path)}
    assert trial.newest_step >= 5
    assert trial.repeated_steps == 1
    assert 0 < trial.recovery_s < 5
    assert system.stopped
    assert len(pids) == 4
    assert not any(is_alive(pid) for pid in pids)


def test_a_trial_without_recovery_says_so_and_ends_everything_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("zerofleet.benchmarks.recovery_trial.RECOVERY_TIMEOUT_S", 0.5)
    other = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={**os.environ, MARK: "other"}
    )
    try:
        with pytest.raises(TrialError, match=r"fake: no new step within 0 s of the kill"):
            run_trial(Fake("gives up"), tmp_path, Plan(kill_step=3, delay_s=0.0))
        assert not any(is_alive(line.pid) for line in read_lines(tmp_path))
        assert other.poll() is None
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()


def is_alive(pid):
    deadline = time.monotonic() + 5  # an orphan that was killed is reaped by the system, in its own time
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.01)
    return True
