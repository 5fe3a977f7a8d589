"""Whether torchrun may go on with a run: tiny.yaml's folder, with what drivers left in it."""

import json
import os
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.driver_records import driver_records
from zerofleet.trainer.errors import StorageError, UserError
from zerofleet.trainer.process_id import ProcessId
from zerofleet.trainer.run_folder import RunFolder
from zerofleet.trainer.takeover import check_takeover, parse_config


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    return TrainConfig(
        run={"name": "a", "storage": str(tmp_path)},
        model={"config": {"model_type": "llama", "hidden_size": 64}},
        data={"files": ["/corpus/*.txt"]},
        train={"steps": 6, "global_batch_size": 8, "micro_batch_size": 2},
        deepspeed={"zero_optimization": {"reduce_bucket_size": 5e7}},
    )


@pytest.fixture
def run(config) -> RunFolder:
    found = RunFolder(config.run.storage, "a")
    found.create(yaml.safe_dump({**config.model_dump(mode="json"), "cluster": {"nodes": 1}}))
    return found


def add_driver(run: RunFolder, *overrides: str, pid: int = 2**22 + 1, boot: str = "") -> None:
    """Without a `pid`, one that no process has."""
    own = ProcessId.own()
    record = {
        "host": socket.gethostname(),
        "pid": pid,
        "process": str(replace(own, pid=pid, boot=boot or own.boot)),
        "started_at": time.time(),
        "overrides": overrides,
    }
    run.storage.create(f"drivers/{len(driver_records(run)) + 1:04d}.json", json.dumps(record).encode())


def changed(config: TrainConfig, **changes) -> TrainConfig:
    """`train__steps=5` changes train.steps."""
    sections = config.model_dump(mode="json")
    for key, value in changes.items():
        section, _, name = key.partition("__")
        sections[section][name] = value
    return TrainConfig(**sections)


def refusal(run: RunFolder, config: TrainConfig) -> str:
    with pytest.raises(UserError) as caught:
        check_takeover(run, config, "job.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_run_that_no_driver_drives_is_taken_over(run, config):
    check_takeover(run, config, "job.yaml")
    add_driver(run)
    check_takeover(run, config, "job.yaml")


def test_a_living_driver_keeps_its_run(run, config):
    add_driver(run)
    add_driver(run, pid=os.getpid())
    message = refusal(run, config)
    assert f"run 'a' is driven by process {os.getpid()} on this host" in message and "`zerofleet stop a`" in message


def test_a_process_on_another_host_is_not_looked_for_here(run, config):
    add_driver(run, pid=os.getpid(), boot="another")
    check_takeover(run, config, "job.yaml")


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("run.seed", {"run__seed": 5}),
        ("run.init_from", {"run__init_from": "b@5"}),
        ("data.sequence_length", {"data__sequence_length": 64}),
        ("model.config.hidden_size", {"model__config": {"model_type": "llama", "hidden_size": 32}}),
        ("train.global_batch_size", {"train__global_batch_size": 16}),
    ],
)
def test_a_job_that_contradicts_the_runs_own_is_refused(run, config, path, change):
    assert f"{path} is frozen for the life of a run: it is " in refusal(run, changed(config, **change))


def test_what_is_not_frozen_may_differ(run, config):
    check_takeover(run, changed(config, train__steps=50, train__zero_stage=3, data__cache="/tmp/x"), "job.yaml")


def test_a_run_that_was_moved_is_taken_over_where_it_lies(run, config, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    Path(run.storage.path()).rename(tmp_path / "elsewhere/b")
    moved = changed(config, run__storage=str(tmp_path / "elsewhere"), run__name="b")
    check_takeover(RunFolder(str(tmp_path / "elsewhere"), "b"), moved, "job.yaml")


def test_what_the_run_was_resumed_with_must_be_in_the_job(run, config):
    add_driver(run, "train.steps=640", "train.zero_stage=2", "cluster.ranks_per_node=1")
    add_driver(run, "train.zero_stage=3", "deepspeed.zero_optimization.overlap_comm=false")
    message = refusal(run, config)
    lacking = "train.steps=640 train.zero_stage=3 deepspeed.zero_optimization.overlap_comm=false"
    assert f"was resumed with {lacking}, which job.yaml does not say" in message and "`zerofleet resume a`" in message
    zero = {"reduce_bucket_size": 5e7, "overlap_comm": False}
    told = changed(config, train__steps=640, train__zero_stage=3, deepspeed__zero_optimization=zero)
    check_takeover(run, told, "job.yaml")


def test_an_override_that_says_the_same_lacks_nothing(run, config):
    tuned = changed(config, train__learning_rate=3e-4, train__betas=[0.8, 0.9], tracking__wandb={"enabled": True})
    add_driver(run, "train.learning_rate=3e-4", "train.betas=[0.8, 0.9]", "train.gradient_clipping=1")
    add_driver(run, "tracking.wandb.enabled=true", "deepspeed.zero_optimization.reduce_bucket_size=5e7")
    check_takeover(run, tuned, "job.yaml")


def test_what_is_no_job_and_what_is_no_claim_is_said(run, config):
    for text in ("[1, 2]", "a: {", "train: {steps: none}"):
        with pytest.raises(UserError, match=r"job\.yaml is not a job"):
            parse_config(text, "job.yaml")
    run.storage.create("drivers/0001.json", b"{")
    with pytest.raises(StorageError, match=r"drivers/0001\.json is no driver's claim"):
        check_takeover(run, config, "job.yaml")
