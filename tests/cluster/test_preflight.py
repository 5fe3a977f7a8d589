"""Is a node fit? Which of many is not?"""

from __future__ import annotations

from dataclasses import replace

from zerofleet.cluster.preflight import NodeFinding, compare_nodes, inspect_node
from zerofleet.cluster.spec import NodeSpec
from zerofleet.trainer.node_name import NODE_NAME

SPEC = NodeSpec("r", 0, "cpu", None, "/tmp/r")


def errors(report):
    """Without warnings, which depend on the machine that tests run on."""
    return [finding for finding in report.findings if finding.level == "error"]


def test_this_machine_is_fit(tmp_path):
    report = inspect_node(SPEC, str(tmp_path))
    assert not errors(report)
    assert report.versions.keys() >= {"python", "torch", "deepspeed", "ray"}
    assert report.memory_bytes > 2**30


def test_a_node_is_named_as_it_names_itself(tmp_path, monkeypatch):
    monkeypatch.setenv(NODE_NAME, "gke-pool-7")
    report = inspect_node(SPEC, str(tmp_path / "absent"))
    assert report.node == "gke-pool-7" and errors(report)[0].node == "gke-pool-7"


def test_data_that_another_node_has(tmp_path):
    (finding,) = errors(inspect_node(SPEC, str(tmp_path / "absent")))
    assert "set data.cache to a folder that every node sees" in finding.message


def test_a_gpu_job_on_a_node_without_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (finding,) = errors(inspect_node(replace(SPEC, accelerator="cuda"), str(tmp_path)))
    assert "no GPU is visible" in finding.message


def test_the_node_with_other_versions_is_named(tmp_path):
    good = replace(inspect_node(SPEC, str(tmp_path)), findings=())
    odd = replace(good, node="b", versions=good.versions | {"torch": "1.0"})
    (finding,) = compare_nodes([good, odd, replace(good, node="c")])
    assert finding.node == "b"
    assert "torch is 1.0" in finding.message


def test_findings_of_all_nodes_are_kept(tmp_path):
    good = replace(inspect_node(SPEC, str(tmp_path)), findings=())
    warning = NodeFinding("warning", "a", "little disk")
    assert compare_nodes([replace(good, findings=(warning,)), good]) == [warning]
