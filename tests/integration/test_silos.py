"""Runs of silos as a user starts them: each silo with ranks, stage and data of its own, outer steps between them."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.conftest import WORDS
from tests.support.cli import Cli, assert_audited, losses, wait_for_end
from zerofleet.launch.drivers import driver_records
from zerofleet.launch.silos.jobs import silo_run
from zerofleet.trainer.run_folder import RunFolder

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

STEPS, INTERVAL = 48, 4
NUM_ROUNDS = STEPS // INTERVAL
SILOS = {
    "strategy": "diloco",
    "interval_steps": INTERVAL,
    "keep_rounds": 20,
    "members": {"a": {"ranks_per_node": 2, "zero_stage": 2}, "b": {"ranks_per_node": 1, "zero_stage": 0}},
}


def corpus_of(folder: Path, seed: int, words: list[str]) -> Path:
    """Twenty small files that share a part of their words with the others'."""
    draw = random.Random(seed)
    folder.mkdir()
    for number in range(20):
        lines = [" ".join(draw.choices(words, k=draw.randint(5, 20))) for _ in range(30)]
        (folder / f"{number:02d}.txt").write_text("\n".join(lines))
    return folder


class SilosCli(Cli):
    """The tiny recipe with two silos: other words, ranks and stages in each."""

    def __init__(self, folder: Path, corpus: Path) -> None:
        super().__init__(folder, corpus)
        sections = yaml.safe_load(self.recipe.read_text())
        sections["train"]["steps"] = STEPS
        sections["cluster"]["cpus_per_rank"] = 0.4
        sections["checkpoint"]["interval_steps"] = 6
        sections["silos"] = {**SILOS, "members": {name: dict(member) for name, member in SILOS["members"].items()}}
        for seed, (name, member) in enumerate(sections["silos"]["members"].items()):
            own = corpus_of(folder / name, seed, WORDS[seed * 6 : seed * 6 + 14])
            member["files"] = [f"{own}/*.txt"]
        self.recipe.write_text(yaml.safe_dump(sections))

    def silo(self, run: str, name: str) -> RunFolder:
        return silo_run(self.run(run), name)

    def losses(self, run: str) -> dict[str, dict[int, float]]:
        return {name: losses(self.silo(run, name)) for name in SILOS["members"]}


@pytest.fixture(scope="module")
def cli(tmp_path_factory, tiny_corpus):
    return SilosCli(tmp_path_factory.mktemp("silos"), tiny_corpus)


@pytest.fixture(scope="module")
def unbroken(cli):
    done = cli.submit("unbroken")
    assert done.returncode == 0, done.stdout + done.stderr
    return cli.losses("unbroken")


def test_two_silos_train_one_model(cli, unbroken):
    run = cli.run("unbroken")
    assert {name: sorted(found) for name, found in unbroken.items()} == {
        name: list(range(1, STEPS + 1)) for name in "ab"
    }
    rounds = [event.data for event in run.events() if event.kind == "round"]
    assert [found["round"] for found in rounds] == list(range(1, NUM_ROUNDS + 1))
    assert all(sorted(found["tokens"]) == ["a", "b"] for found in rounds)
    for name in "ab":
        assert_audited(cli.silo("unbroken", name), STEPS)
    assert list(losses(run)) == list(range(INTERVAL, STEPS + 1, INTERVAL))
    assert run.storage.exists("export/model.safetensors")


def wait_until(is_so: Callable[[], bool], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def pid_of_rank(run: RunFolder, rank: int) -> int:
    """Of the first attempt, when it is up."""

    def found() -> list[int]:
        return [e.data["pid"] for e in run.events() if e.kind == "phase" and e.phase == "init" and e.rank == rank]

    wait_until(lambda: bool(found()))
    return found()[0]


def events_of(run: RunFolder, kind: str) -> list[dict]:
    return [event.data for event in run.events() if event.kind == kind]


def test_kill_9_of_a_rank_in_one_silo_changes_no_bit_in_any(cli, unbroken):
    assert cli.submit("killed", "--detach").returncode == 0
    silo = cli.silo("killed", "a")
    wait_until(lambda: max(losses(silo), default=0) >= 5)
    os.kill(pid_of_rank(silo, 1), signal.SIGKILL)
    assert wait_for_end(cli, "killed") == "FINISHED"
    assert [len(cli.silo("killed", name).attempts()) for name in "ab"] == [2, 1]
    assert cli.losses("killed") == unbroken
    assert_audited(silo, STEPS)


def test_a_nan_in_one_silo_is_rejected_and_named_and_the_others_go_on(cli, unbroken):
    fault = {"kind": "nan", "rank": 0, "step": 8, "point": "outer", "silo": "b"}
    done = cli.submit("nan", "silos.quorum=1", ZEROFLEET_FAULTS=json.dumps([fault]))
    assert done.returncode == 0, done.stdout + done.stderr
    rounds = events_of(cli.run("nan"), "round")
    assert [sorted(found["rejected"]) for found in rounds] == [[], ["b"], *[[]] * (NUM_ROUNDS - 2)]
    assert any("silo b in round 2 was rejected" in data["message"] for data in events_of(cli.run("nan"), "incident"))
    states = [(data["round"], data["state"]) for data in events_of(cli.silo("nan", "b"), "outer")]
    assert states[:4] == [(0, "joined"), (1, "done"), (2, "rejected"), (3, "done")]
    found = cli.losses("nan")
    assert {step: loss for step, loss in found["b"].items() if step <= 8} == {s: unbroken["b"][s] for s in range(1, 9)}
    assert found["b"][9] != unbroken["b"][9], "the outer weights are without b's second delta"


def test_a_silo_whose_driver_is_killed_comes_back_and_no_bit_changes(cli, unbroken):
    assert cli.submit("back", "--detach").returncode == 0
    silo = cli.silo("back", "b")
    wait_until(lambda: max(losses(silo), default=0) >= 5)
    os.kill(driver_records(silo)[-1].pid, signal.SIGKILL)
    assert wait_for_end(cli, "back") == "FINISHED"
    assert len(driver_records(silo)) == 2
    told = [data["message"] for data in events_of(cli.run("back"), "incident")]
    assert any("the driver of silo b was killed by SIGKILL: another is started" in message for message in told), told
    assert cli.losses("back") == unbroken


@pytest.mark.further
def test_a_silo_that_fails_for_good_is_left_behind_when_the_quorum_is_there(cli):
    fault = {"kind": "raise", "rank": 0, "step": 6, "attempt": None, "silo": "b"}
    done = cli.submit("left", "silos.quorum=1", ZEROFLEET_FAULTS=json.dumps([fault]))
    assert done.returncode == 0, done.stdout + done.stderr
    run = cli.run("left")
    assert [found["missing"] for found in events_of(run, "round")] == [[], *[["b"]] * (NUM_ROUNDS - 1)]
    told = [data["message"] for data in events_of(run, "incident")]
    assert any("silo b ended FAILED" in message and "go on without it" in message for message in told), told
    assert max(losses(cli.silo("left", "a"))) == STEPS
    assert run.storage.exists("export/model.safetensors")


@pytest.mark.further
def test_without_the_quorum_the_run_fails_and_says_why(cli):
    fault = {"kind": "raise", "rank": 0, "step": 6, "attempt": None, "silo": "b"}
    done = cli.submit("few", ZEROFLEET_FAULTS=json.dumps([fault]))
    assert done.returncode == 1
    assert "b FAILED" in done.stderr and "the quorum is 2" in done.stderr
    assert not cli.run("few").storage.exists("export")


@pytest.mark.further
def test_a_run_that_was_stopped_goes_on_and_no_bit_changes(cli, unbroken):
    assert cli.submit("stopped", "--detach").returncode == 0
    wait_until(lambda: min(max(losses(cli.silo("stopped", name)), default=0) for name in "ab") >= 3)
    # From here: a command takes a busy machine as long to start as the steps that are left.
    cli.run("stopped").request("stop")
    wait_until(lambda: any(found["to"] == "DRAINING" for found in events_of(cli.run("stopped"), "state")))
    cli.run("stopped").request("stop")
    stopped = cli("stop", "stopped")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert max(losses(cli.silo("stopped", "a"))) < STEPS
    for silo in (cli.silo("stopped", name) for name in "ab"):
        assert silo.checkpoints()[-1].step == max(losses(silo)), "asked twice, it has saved all the same"
    resumed = cli("resume", "stopped")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert cli.losses("stopped") == unbroken


@pytest.mark.further
def test_a_run_whose_driver_was_killed_goes_on_and_no_bit_changes(cli, unbroken):
    assert cli.submit("orphaned", "--detach").returncode == 0
    wait_until(lambda: max(losses(cli.silo("orphaned", "a")), default=0) >= 5)
    os.kill(driver_records(cli.run("orphaned"))[-1].pid, signal.SIGKILL)
    resumed = cli("resume", "orphaned")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert cli.losses("orphaned") == unbroken


def test_status_and_audit_look_into_every_silo(cli, unbroken):
    status = cli("status", "unbroken")
    assert status.returncode == 0, status.stderr
    for name in "ab":
        assert re.search(rf"silo {name} +FINISHED  step {STEPS}/{STEPS} .* round {NUM_ROUNDS} done", status.stdout), (
            status.stdout
        )
    audit = cli("audit", "unbroken", "--json")
    facts = json.loads(audit.stdout)
    assert audit.returncode == 0 and facts["exact"] and sorted(facts["silos"]) == ["a", "b"]
    assert facts["silos"]["a"]["positions"] == STEPS * 8


@pytest.mark.further
def test_private_silos_under_masks_as_a_recipe_asks_for_them(cli):
    """Three silos; `status` tells what they have spent."""
    third = f"silos.members.c={{files: [{cli.folder}/a/*.txt], ranks_per_node: 1}}"
    private = "silos.privacy={clip_norm: 0.02, noise_multiplier: 0.5}"
    done = cli.submit(
        "secret", third, private, "silos.secure_aggregation=true", "silos.quorum=2", f"train.steps={2 * INTERVAL}"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rounds = events_of(cli.run("secret"), "round")
    assert [(sorted(found["tokens"]), found["is_step"]) for found in rounds] == [(["a", "b", "c"], True)] * 2
    spent = [data["privacy"]["epsilon"] for data in events_of(cli.silo("secret", "b"), "outer")]
    assert spent[0] == 0 < spent[1] < spent[2]
    status = cli("status", "secret")
    for name in "abc":
        assert re.search(rf"silo {name} .* round 2 done  epsilon {spent[2]:.3g} at delta 1e-05", status.stdout), (
            status.stdout
        )
