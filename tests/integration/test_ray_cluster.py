"""`--backend ray` on a real Ray cluster of one node: a job from its submission to its end, and the loss of the cluster's head."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.cli import Cli, assert_audited, losses, wait_for_step
from tests.support.ranks import Plan, run_attempt
from tests.support.ray_head import RayHead
from zerofleet.launch.config import load_job
from zerofleet.launch.drivers import driver_records, job_records

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
PYTHON_PATH = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])


@pytest.fixture
def cli(tmp_path, tiny_corpus):
    return Cli(tmp_path, tiny_corpus)


@pytest.mark.further
def test_a_job_is_sent_trains_and_leaves_no_secret(cli, tmp_path, tiny_cache):
    """The cluster has some other zerofleet: this one's code is sent, and found before it."""
    for package in ("cluster", "launch", "trainer"):
        other = tmp_path / "image/zerofleet" / package
        other.mkdir(parents=True)
        (other / "__init__.py").write_text("raise ImportError('the code of the image was run')\n")
    with RayHead(tmp_path, os.pathsep.join([str(tmp_path / "image"), PYTHON_PATH])) as head:
        token = {"RAY_AUTH_TOKEN_PATH": str(head.token_file)}
        refused = cli.submit("a", "--backend", "ray", "--address", head.address, RAY_AUTH_TOKEN="planted-and-wrong")
        assert refused.returncode == 2 and "refuses the token from RAY_AUTH_TOKEN" in refused.stderr
        done = cli.submit("a", "--backend", "ray", "--address", head.address, **token, timeout_s=300)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (
            "is sent from here" in done.stdout
            and "\nplan: " in done.stdout
            and "a: FINISHED at step 6 of 6" in done.stdout
        )
        status = cli("status", "a", **token)
        (record,) = job_records(cli.run("a"))
        assert f"gone: job {record.job} on {head.address} is SUCCEEDED" in status.stdout
        log = cli("logs", "a", **token)
        assert "FINISHED: all 6 steps are done" in log.stdout
        assert cli("logs", "a", "--rank", "1", **token).returncode == 0
        examined = cli("doctor", "--address", head.address, "--recipe", str(cli.recipe), **token)
        assert examined.returncode == 0 and "are free" in examined.stdout, examined.stdout
        said = [stream for one in (refused, done, status, log, examined) for stream in (one.stdout, one.stderr)]
        kept = [
            file
            for folder in (cli.storage, *(f / "session_latest/logs" for f in head.folders))
            for file in folder.rglob("*")
        ]
        texts = [*said, *(file.read_text(errors="replace") for file in kept if file.is_file())]
    assert len(texts) > 40
    assert not [text[:200] for text in texts if head.token in text or "planted-and-wrong" in text]
    assert_audited(cli.run("a"), 6)


@pytest.mark.further
def test_two_runs_side_by_side_leave_each_other_alone(cli, tmp_path, tiny_corpus, tiny_cache):
    """One of them loses a rank meanwhile."""
    settings = {"a": ["train.steps=300"], "b": ["train.steps=300", "train.learning_rate=0.005"]}
    with RayHead(tmp_path, PYTHON_PATH) as head, ThreadPoolExecutor(2) as pool:
        options = ("--backend", "ray", "--address", head.address)
        token = {"RAY_AUTH_TOKEN_PATH": str(head.token_file)}
        submits = [
            pool.submit(cli.submit, name, *changes, *options, timeout_s=300, **token)
            for name, changes in settings.items()
        ]
        for name in settings:
            wait_for_step(cli.run(name), 10, timeout_s=200)
        ranks = [event for event in cli.run("a").events() if event.phase == "init" and event.rank == 1]
        os.kill(ranks[0].data["pid"], signal.SIGKILL)
        ended = [submit.result() for submit in submits]
    assert [done.returncode for done in ended] == [0, 0], ended
    assert [len(cli.run(name).attempts()) for name in settings] == [2, 1]
    for name, changes in settings.items():
        assert_audited(cli.run(name), 300)
        alone = load_job(cli.recipe, [f"run.name={name}-alone", *changes]).train_config()
        assert losses(cli.run(name)) == run_attempt(alone, tiny_cache, 2).losses(), f"{name}: bitwise as alone"


@pytest.mark.long
def test_the_loss_of_the_head_is_said_and_resume_goes_on(cli, tmp_path, tiny_corpus, tiny_cache):
    run = cli.run("b")
    with RayHead(tmp_path, PYTHON_PATH) as head:
        token = {"RAY_AUTH_TOKEN_PATH": str(head.token_file)}
        started = cli.submit(
            "b",
            "train.steps=5000",
            "checkpoint.interval_steps=10",
            "--detach",
            "--backend",
            "ray",
            "--address",
            head.address,
            **token,
        )
        assert started.returncode == 0 and "as the cluster has it" in started.stdout, started.stdout + started.stderr
        wait_for_step(run, 25, timeout_s=200)
        assert "is RUNNING" in cli("status", "b", **token).stdout
        head.kill()
        lost = cli("status", "b", **token).stdout
        assert "DEAD: its driver is silent, and the cluster cannot be asked" in lost, lost
        head.start()
        lost = cli("status", "b", **token).stdout
        assert "DEAD: its driver was lost with the head of its cluster, which was started anew since" in lost, lost
        resumed = cli("resume", "b", "--detach", **token)
        assert resumed.returncode == 0, resumed.stdout + resumed.stderr
        wait_for_step(run, max(losses(run)) + 5, timeout_s=200)
        stopped = cli("stop", "b", **token)
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert len(driver_records(run)) == len(job_records(run)) == 2
    second = run.attempts()[1]
    assert second.start_step >= 20, "from the newest commit, or from what the node's memory held"
    done = losses(run)
    assert_audited(run, max(done))
    config = load_job(
        cli.recipe, ["run.name=unbroken", "train.steps=5000", "checkpoint.interval_steps=0"]
    ).train_config()
    unbroken = run_attempt(config, tiny_cache, 2, Plan(stop_after=max(done)), timeout_s=200).losses()
    assert done == {step: unbroken[step] for step in done}, "bitwise"
