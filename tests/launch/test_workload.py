"""From a job to what pods need: where its files lie, and sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.k8s.support import CPU, H100, changed_profile, job_for
from zerofleet.k8s.profile import GIB
from zerofleet.k8s.workload import summary
from zerofleet.launch.config import parse_job
from zerofleet.launch.workload import load_profile, workload_of
from zerofleet.trainer.errors import UserError


def load(path: Path, *overrides: str, num_parameters: int | None = None, **changes):
    return workload_of(job_for(path, *overrides), changed_profile(path, **changes), num_parameters)


@pytest.mark.parametrize("storage", [None, "/somewhere/else", "s3://laptop/runs"])
def test_the_laptops_own_storage_is_not_the_runs(monkeypatch, storage):
    if storage:
        monkeypatch.setenv("ZEROFLEET_STORAGE", storage)
    assert load(CPU).storage == "/mnt/zerofleet/runs"
    assert load(CPU, storage__url="s3://team/runs").storage == "s3://team/runs"


def test_a_storage_that_the_recipe_names_is_the_runs():
    assert load(CPU, "run.storage=s3://mine/runs").storage == "s3://mine/runs"
    assert load(CPU, "run.storage=file:///mnt/zerofleet/mine").storage == "/mnt/zerofleet/mine"


def test_the_head_reads_the_job_with_what_was_changed():
    workload = load(CPU, "cluster.address=elsewhere:1")
    job = parse_job(workload.job_yaml, "rendered")
    assert (job.run.name, job.run.storage, job.cluster.address) == ("first", "/mnt/zerofleet/runs", "127.0.0.1:6379")


def test_paths_urls_and_hub_ids_are_told_apart():
    overrides = ["data.files=[python-stdlib,/a/*.txt,file:///b.txt,s3://c/d]", "data.tokenizer=org/name"]
    workload = load(CPU, *overrides, "model.config.vocab_size=9")
    assert [(p.where, p.path) for p in workload.paths] == [
        ("run.storage", "/mnt/zerofleet/runs"),
        ("data.files.1", "/a/*.txt"),
        ("data.files.2", "/b.txt"),
    ]
    assert [(p.where, p.path) for p in workload.urls] == [("data.files.3", "s3://c/d")]


def test_the_files_of_a_mixture_are_the_recipes_too():
    web = "data.sources.web={weight: 2, files: [python-stdlib,/a/*.txt,file:///b.txt]}"
    code = "data.sources.code={weight: 1, files: [s3://c/d]}"
    workload = load(CPU, "data.files=[]", "data.packing=best_fit", web, code)
    assert [(p.where, p.path) for p in workload.paths] == [
        ("run.storage", "/mnt/zerofleet/runs"),
        ("data.sources.web.files.1", "/a/*.txt"),
        ("data.sources.web.files.2", "/b.txt"),
    ]
    assert [(p.where, p.path) for p in workload.urls] == [("data.sources.code.files.0", "s3://c/d")]


def test_snapshots_take_half_of_what_the_ranks_leave_at_most():
    seven = load(H100, num_parameters=7 * 10**9)
    assert seven.num_buffers == 7 and seven.snapshot_bytes == 42 * 10**9
    for memory_gib, num_buffers in ((600, 7), (500, 6), (450, 5), (300, 3), (230, 2), (150, 0)):
        workload = load(H100, num_parameters=7 * 10**9, workers__memory_gib=memory_gib)
        assert workload.num_buffers == num_buffers, memory_gib
        assert workload.buffer_bytes <= (memory_gib * GIB - workload.host_bytes) / 2


def test_a_run_without_snapshots_needs_no_room_for_them():
    workload = load(CPU, "checkpoint.snapshot_interval_steps=0")
    assert (workload.num_buffers, workload.buffer_bytes, workload.least_buffer_bytes) == (0, 0, 0)


def test_one_node_keeps_no_replicas():
    assert load(CPU).num_buffers == 3
    assert load(H100, "cluster.nodes=1").num_buffers == 3


def test_the_state_is_in_the_hosts_memory_on_cpus_and_when_it_is_offloaded():
    offload = "deepspeed.zero_optimization.offload_optimizer.device=cpu"
    on_gpus, offloaded = load(H100, num_parameters=10**9), load(H100, offload, num_parameters=10**9)
    assert on_gpus.host_bytes == 18 * GIB
    assert offloaded.host_bytes > on_gpus.host_bytes + 8 * 2 * 10**9
    assert load(CPU, num_parameters=10**9).host_bytes > 6 * GIB + 2 * 8 * 10**9


def test_the_summary_says_what_is_known():
    profile = load_profile(CPU)
    lines = summary(profile, load(CPU, num_parameters=10**9, workers__memory_gib=64))
    assert lines[0] == "1 worker pod(s) x 2 ranks = world size 2, and a head"
    assert "1,000.0 M parameters: 12.00 GB per checkpoint, 12.00 GB of it on a node" in lines[1]
    assert "grace period 210 s: 60 s for the step and the commit, 120 s to write at 100 MB/s, 15 s for Ray" in lines[3]


def test_labels_of_a_joined_cluster_are_none_of_pods():
    with pytest.raises(UserError, match="cluster.labels .* workers.node_selector"):
        load(CPU, "cluster.labels={party: a}")
