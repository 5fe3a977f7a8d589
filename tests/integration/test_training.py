"""What a run may be configured to do: recomputation, dropout, offload, pretrained weights, trackers, torchrun."""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest
import yaml

from tests.support.cli import assert_audited
from tests.support.ranks import TINY_LLAMA, Plan, job, run_attempt
from zerofleet.trainer.checkpoint.export import export
from zerofleet.trainer.process_id import ProcessId
from zerofleet.trainer.run_folder import RunFolder

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


def run_losses(config, cache, world_size=2):
    outcome = run_attempt(config, cache, world_size)
    assert not outcome.errors, outcome.errors
    return outcome.losses()


@pytest.mark.parametrize("stage", [1, 3])
def test_activation_checkpointing_changes_memory_and_not_the_losses(tmp_path, tiny_corpus, tiny_cache, stage):
    plain = run_losses(job(tmp_path / "plain", tiny_corpus, train__zero_stage=stage), tiny_cache)
    recomputed = job(
        tmp_path / "recomputed", tiny_corpus, train__zero_stage=stage, train__activation_checkpointing=True
    )
    assert run_losses(recomputed, tiny_cache) == pytest.approx(plain, rel=1e-6)


def test_traced_steps_are_those_of_the_run_and_leave_their_trace(tmp_path, tiny_corpus, tiny_cache):
    plain = run_losses(job(tmp_path / "plain", tiny_corpus), tiny_cache)
    config = job(tmp_path / "traced", tiny_corpus, train__profile={"steps": [3, 4], "ranks": [0, 1]})
    outcome = run_attempt(config, tiny_cache, 2)
    assert not outcome.errors, outcome.errors
    assert outcome.losses() == plain
    traces = sorted(outcome.of("profile"), key=lambda event: event.rank)
    assert [(event.rank, event.data["steps"]) for event in traces] == [(0, [3, 4]), (1, [3, 4])]
    run = RunFolder(config.run.storage, config.run.name)
    for event in traces:
        names = {op["name"] for op in event.data["ops"]}
        assert any("mm" in name for name in names) and event.data["memory"]["cpu"], names
        entries = json.loads(gzip.decompress(run.storage.read(event.data["path"])))["traceEvents"]
        assert {"step 3", "step 4"} <= {entry["name"] for entry in entries} and any(
            "Backward" in e["name"] for e in entries
        )


@pytest.mark.further
@pytest.mark.timeout(400)
def test_compiled_layers_train_the_same_losses_and_go_on_bitwise(tmp_path, tiny_corpus, tiny_cache):
    plain = run_losses(job(tmp_path / "plain", tiny_corpus, train__steps=4), tiny_cache)
    compiled = {"train__steps": 4, "train__compile": True, "train__zero_stage": 2}
    unbroken = run_attempt(job(tmp_path / "a", tiny_corpus, **compiled), tiny_cache, 2, timeout_s=180)
    assert not unbroken.errors, unbroken.errors
    assert unbroken.losses() == pytest.approx(plain, rel=1e-5) and unbroken.losses() != plain
    config = job(tmp_path / "b", tiny_corpus, **compiled)
    first = run_attempt(config, tiny_cache, 2, Plan(stop_after=2), timeout_s=180)
    second = run_attempt(config, tiny_cache, 2, timeout_s=180)
    assert not first.errors + second.errors, first.errors + second.errors
    assert {**first.losses(), **second.losses()} == unbroken.losses()


def test_dropout_is_a_function_of_the_block_and_survives_a_restart(tmp_path, tiny_corpus, tiny_cache):
    model = {
        "config": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, "resid_pdrop": 0.2}
    }
    unbroken = run_losses(job(tmp_path / "a", tiny_corpus, model=model), tiny_cache)
    config = job(tmp_path / "b", tiny_corpus, model=model)
    first = run_attempt(config, tiny_cache, 2, Plan(stop_after=3))
    assert not first.errors, first.errors
    assert {**first.losses(), **run_losses(config, tiny_cache)} == unbroken
    quiet = {"config": {**model["config"], "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}}
    assert run_losses(job(tmp_path / "c", tiny_corpus, model=quiet), tiny_cache) != unbroken, "dropout did something"


@pytest.mark.parametrize("stage", [0, 3])
def test_a_pretrained_folder_starts_with_its_weights(tmp_path, tiny_corpus, tiny_cache, stage):
    source = job(tmp_path / "source", tiny_corpus)
    trained = run_attempt(source, tiny_cache, 2)
    folder = export(RunFolder(source.run.storage, source.run.name), None, tmp_path / "exported", "fp32")
    config = job(tmp_path / "tuned", tiny_corpus, model={"pretrained": folder}, train__zero_stage=stage)
    tuned = run_attempt(config, tiny_cache, 2)
    assert not tuned.errors, tuned.errors
    assert tuned.of("eval")[0].data["loss"] == pytest.approx(trained.of("eval")[-1].data["loss"], rel=1e-5)


def test_a_pretrained_folder_that_lacks_weights_is_refused(tmp_path, tiny_corpus, tiny_cache):
    from safetensors.torch import load_file, save_file

    source = job(tmp_path / "source", tiny_corpus, train__steps=1)
    run_attempt(source, tiny_cache, 1)
    folder = export(RunFolder(source.run.storage, source.run.name), None, tmp_path / "exported", "fp32")
    weights = load_file(f"{folder}/model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layers.1.mlp" not in name}
    save_file(kept, f"{folder}/model.safetensors", metadata={"format": "pt"})
    for stage in (1, 3):
        outcome = run_attempt(
            job(tmp_path / str(stage), tiny_corpus, model={"pretrained": folder}, train__zero_stage=stage),
            tiny_cache,
            2,
        )
        assert {name for _, name, _ in outcome.errors} == {"UserError"}
        assert "lacks 3 of the model's weights" in outcome.errors[0][2]


def test_wandb_gets_one_offline_run_under_the_same_id_in_every_attempt(tmp_path, tiny_corpus, tiny_cache):
    from tests.support.cli import Cli

    cli = Cli(tmp_path / "cli", tiny_corpus)
    fault = json.dumps([{"kind": "kill", "rank": 0, "step": 4}])
    done = cli.submit("tracked", "tracking.wandb.enabled=true", WANDB_API_KEY="", ZEROFLEET_FAULTS=fault)
    assert done.returncode == 0, done.stdout + done.stderr
    folders = sorted((cli.storage / "tracked/wandb/wandb").glob("offline-run-*"))
    assert folders and len({folder.name.rsplit("-", 1)[1] for folder in folders}) == 1
    assert any(folder.glob("*.wandb") for folder in folders)
    assert "wandb:" not in done.stdout + done.stderr


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


def torchrun(path):
    command = [*TORCHRUN, "-m", "zerofleet.trainer", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=ENVIRONMENT)


def test_torchrun_trains_the_same_losses_resumes_and_says_a_users_mistake(tmp_path, tiny_corpus, tiny_cache):
    config = job(tmp_path / "here", tiny_corpus)
    expected = run_losses(config, tiny_cache)
    other = job(tmp_path / "there", tiny_corpus).model_dump(mode="json")
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({**other, "train": {**other["train"]}, "cluster": {"nodes": 1}}))
    done = torchrun(path)
    assert done.returncode == 0, done.stderr
    run = RunFolder(other["run"]["storage"], "tiny")
    found = {r["step"]: r["data"]["loss"] for r in run.read("metrics") if r["kind"] == "step"}
    assert found == expected
    run.storage.local_path(run.checkpoints()[-1].manifest).write_text("{}")
    again = torchrun(path)
    assert again.returncode == 0, again.stderr
    assert "skipped the checkpoint of step 6 (attempt 1): manifest.json is not whole" in again.stdout
    assert run.attempts()[-1].start_step == 4
    assert_audited(run, 6)
    path.write_text(yaml.safe_dump({**other, "run": {**other["run"], "seed": 5}}))
    contradicting = torchrun(path)
    assert (
        contradicting.returncode != 0
        and "run.seed is frozen for the life of a run: it is 0, not 5" in contradicting.stderr
    )
    assert len(run.attempts()) == 2
    named = {**other["run"], "name": "small"}
    path.write_text(yaml.safe_dump({**other, "run": named, "model": {"config": {**TINY_LLAMA, "vocab_size": 10}}}))
    wrong = torchrun(path)
    assert wrong.returncode != 0 and "the model's vocabulary only 10" in wrong.stderr


@pytest.mark.further
def test_torchrun_leaves_a_run_to_its_living_driver_and_does_not_forget_what_it_was_resumed_with(tmp_path, tiny_corpus):
    """The driver here is this process."""
    config = job(tmp_path, tiny_corpus).model_dump(mode="json")
    run = RunFolder(config["run"]["storage"], "tiny")
    run.create(yaml.safe_dump(config))
    driver = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process": str(ProcessId.own()),
        "started_at": time.time(),
        "overrides": ["train.zero_stage=2"],
    }
    for number, claim, said in (
        (
            1,
            driver,
            f"run 'tiny' is driven by process {os.getpid()} on this host: `zerofleet stop tiny` saves and ends it",
        ),
        (
            2,
            {**driver, "process": str(replace(ProcessId.own(), ticks=1))},
            "run 'tiny' was resumed with train.zero_stage=2, which ",
        ),
    ):
        run.storage.create(f"drivers/{number:04d}.json", json.dumps(claim).encode())
        refused = torchrun(run.storage.local_path("job.yaml"))
        assert refused.returncode != 0 and said in refused.stderr
        assert not run.attempts() and not list(run.read("events"))


@pytest.mark.further
@pytest.mark.parametrize("whom", ["torchrun", "rank 0"])
def test_ranks_whose_torchrun_was_killed_or_of_which_rank_0_is_asked_save_and_end(
    tmp_path, tiny_corpus, tiny_cache, whom
):
    config = job(tmp_path, tiny_corpus, train__steps=10_000, checkpoint__interval_steps=0)
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    run = RunFolder(config.run.storage, "tiny")
    with (tmp_path / "log").open("w") as log:
        launcher = subprocess.Popen([*TORCHRUN, "-m", "zerofleet.trainer", str(path)], env=ENVIRONMENT, stdout=log)
    wait_until(lambda: any(r["kind"] == "step" for r in run.read("metrics")))
    ranks = [child for child in psutil.Process(launcher.pid).children(recursive=True) if child.is_running()]
    assert len(ranks) == 2
    (attempt,) = run.attempts()
    assert attempt.lives_here
    if whom == "rank 0":  # what `zerofleet stop` tells the user to do
        os.kill(attempt.pid, signal.SIGTERM)
        assert launcher.wait(timeout=60) == 0
    else:
        launcher.kill()
        launcher.wait()
    assert not psutil.wait_procs(ranks, timeout=60)[1], "ranks live on"
    assert not attempt.lives_here
    (stopped,) = [event for event in run.events() if event.kind == "stopped"]
    assert [c.step for c in run.checkpoints()] == [stopped.step]


def wait_until(condition, timeout_s=120):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
