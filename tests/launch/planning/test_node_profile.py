"""What hardware a plan is for, from each of its sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from zerofleet.launch.config import parse_job
from zerofleet.launch.config_fields import config_fields
from zerofleet.launch.config_reference import table
from zerofleet.launch.planning import node_profile
from zerofleet.launch.planning.node_profile import NodeProfile, node_for
from zerofleet.trainer.errors import NotFoundError, UserError
from zerofleet.trainer.peaks import dense_16_bit_peak

ROOT = Path(__file__).parents[3]
GIB = 2**30
JOB = """
model: {config: {model_type: llama, hidden_size: 64}}
data: {files: [python-stdlib]}
train: {steps: 3, global_batch_size: 8, micro_batch_size: 2, precision: bf16}
"""


def job(*overrides: str):
    return parse_job(JOB, "test", overrides)


def profile(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return str(path)


def test_a_node_profile(tmp_path):
    text = (
        "cpus: 8\nmemory_gib: 64\ngpus: 4\ngpu: A100 40GB\nnetwork_gb_per_s: 10\nnotice_s: 120\nprice_per_hour: 12.5\n"
    )
    node = node_for(job("cluster.gpus_per_rank=1"), profile(tmp_path, text))
    assert (node.name, node.cpus, node.memory_bytes, node.shm_bytes) == ("mine", 8, 64 * GIB, 32 * GIB)
    assert (node.gpus, node.notice_s, node.price_per_hour) == (4, 120, 12.5)
    assert node.gpu_memory_bytes == pytest.approx(40 * GIB, rel=0.02)
    assert node.speeds is not None and node.speeds.flops == 156e12 and node.speeds.network_bytes == 1e10


def test_what_a_profile_says_of_speed_and_memory_comes_first(tmp_path):
    text = "cpus: 8\nmemory_gib: 64\ngpus: 4\ngpu: H100 80GB\ngpu_memory_gib: 79.5\ntflops: 400\nnetwork_gb_per_s: 10\n"
    node = node_for(job("cluster.gpus_per_rank=1"), profile(tmp_path, text))
    assert node.gpu_memory_bytes == int(79.5 * GIB)
    assert node.speeds is not None and node.speeds.flops == 4e14 and "of the profile" in node.speeds_source


def test_speed_is_not_guessed(tmp_path):
    text = "cpus: 8\nmemory_gib: 64\ngpus: 4\ngpu: H100 80GB\n"
    assert node_for(job("cluster.gpus_per_rank=1"), profile(tmp_path, text)).speeds is None  # of the network
    fast = text + "network_gb_per_s: 10\n"
    assert node_for(job("cluster.gpus_per_rank=1", "train.precision=fp32"), profile(tmp_path, fast)).speeds is None


def test_the_profile_of_a_cluster():
    path = ROOT / "k8s/profiles/h100-infiniband.yaml"
    node = node_for(job("cluster.gpus_per_rank=1", "cluster.ranks_per_node=8"), str(path))
    assert (node.gpus, node.memory_bytes, node.max_nodes) == (8, 1800 * GIB, 16)
    assert node.gpu_memory_bytes == pytest.approx(80 * GIB, rel=0.02) and node.write_bytes_per_s == 1e9


@pytest.mark.parametrize("path", sorted((ROOT / "launch/nodes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_node_that_comes_with_it_can_be_planned_for(path):
    node = node_for(job("cluster.gpus_per_rank=1", "cluster.ranks_per_node=1"), str(path))
    assert node.speeds is not None and node.gpu_memory_bytes


def test_gpus_of_this_machine_have_the_memory_that_their_driver_says(tmp_path, monkeypatch):
    """Of the smallest. An executable says what nvidia-smi says."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\n[ "$1" = --query-gpu=memory.total ] && printf "81559\\n40960\\n"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    node = node_for(job("cluster.gpus_per_rank=1", "cluster.ranks_per_node=2"), None)
    assert (node.gpus, node.gpu_memory_bytes) == (2, 40960 * 2**20)
    tool.write_text("#!/bin/sh\nexit 9\n")
    with pytest.raises(UserError, match="set gpu_memory_gib in a profile"):
        node_for(job("cluster.gpus_per_rank=1"), None)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA-H100-PCIe", 756e12),
        ("NVIDIA-A10G", 70e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA-L40S", 362e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA RTX A1000", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_peaks_are_by_the_whole_name(name, peak):
    assert dense_16_bit_peak(name) == peak


def test_nodes_of_a_ray_of_its_own_share_this_machine(monkeypatch):
    monkeypatch.setattr(node_profile, "memory_bytes", lambda: 60 * GIB)
    assert node_for(job("cluster.nodes=3"), None).memory_bytes == 20 * GIB
    assert node_for(job("cluster.nodes=3", "cluster.address=head:6379"), None).memory_bytes == 60 * GIB


def test_mistakes_say_what_to_do(tmp_path):
    with pytest.raises(UserError, match="take 2 GPUs of a node and mine has 1: lower cluster.ranks_per_node"):
        node_for(job("cluster.gpus_per_rank=1"), profile(tmp_path, "cpus: 8\nmemory_gib: 64\ngpus: 1\n"))
    with pytest.raises(UserError, match="set gpu_memory_gib in a profile"):
        node_for(job("cluster.gpus_per_rank=1"), profile(tmp_path, "cpus: 8\nmemory_gib: 64\ngpus: 2\n"))
    with pytest.raises(UserError, match="memory_gigs is not a key. The nearest is memory_gib"):
        node_for(job(), profile(tmp_path, "cpus: 8\nmemory_gib: 64\nmemory_gigs: 3\n"))
    with pytest.raises(NotFoundError, match="profile .*nowhere.yaml does not exist"):
        node_for(job(), str(tmp_path / "nowhere.yaml"))


def test_the_documentation_has_every_field():
    fields = config_fields(NodeProfile)
    assert table(NodeProfile, list(fields), fields).strip() in (ROOT / "docs/planning.md").read_text()
