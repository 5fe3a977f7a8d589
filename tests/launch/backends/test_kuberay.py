"""`--backend kuberay` before and beside the cluster: mistakes, names, states. With a cluster: tests/integration/test_kuberay.py."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.k8s.objects import observed, ray_job, running
from zerofleet.launch import cli
from zerofleet.launch.backends import kuberay
from zerofleet.launch.backends.kuberay import timed_name
from zerofleet.launch.backends.kuberay_verbs import state_of
from zerofleet.launch.progress import Progress

ROOT = Path(__file__).parents[3]
SUBMIT = ["submit", str(ROOT / "launch/recipes/quickstart.yaml"), "--backend", "kuberay"]
PROFILE = ["--profile", str(ROOT / "k8s/profiles/cpu.yaml")]


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """The command line, on a laptop without a kubeconfig."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_platform_is_needed(call):
    code, _, err = call(*SUBMIT)
    assert code == 2 and "needs --profile" in err


def test_what_lint_finds_is_said_before_any_cluster_is_asked(call, monkeypatch):
    monkeypatch.setattr(kuberay, "Api", None)
    code, out, err = call(*SUBMIT, *PROFILE, "run.name=first.run", "cluster.gpus_per_rank=1")
    assert (
        (code, out) == (2, "")
        and "run.name: 'first.run' is no DNS label" in err
        and "cluster.gpus_per_rank: it is 1" in err
    )


def test_what_is_certain_not_to_fit_the_profiles_nodes_is_refused_before_any_cluster_is_asked(call, monkeypatch):
    monkeypatch.setattr(kuberay, "Api", None)
    monkeypatch.setattr(kuberay, "lint", lambda profile, workload: [])
    large = [
        "model.config.hidden_size=8192",
        "model.config.intermediate_size=32768",
        "model.config.num_hidden_layers=64",
    ]
    heads = ["model.config.num_attention_heads=64", "model.config.num_key_value_heads=8"]
    code, out, err = call(*SUBMIT, *PROFILE, *large, *heads)
    assert (code, out) == (2, "") and "the job does not fit" in err and "memory of a node" in err, err


@pytest.mark.parametrize(
    "arguments", [SUBMIT + PROFILE, ["status", "first", "--backend", "kuberay"], ["list", "--backend", "kuberay"]]
)
def test_without_a_kubeconfig_the_remedy_is_said(call, arguments):
    code, _, err = call(*arguments)
    assert code == 2 and "Set KUBECONFIG, or give --context" in err


def test_a_run_is_a_name_there(call):
    code, _, err = call("status", "runs/first", "--backend", "kuberay")
    assert code == 2 and "RUN is a name with --backend kuberay" in err


@pytest.mark.parametrize("recipe", ["quickstart.yaml", "2026_Trial (final).yaml", f"{'long' * 20}.yaml", "_.yaml"])
def test_a_run_without_a_name_gets_one_that_kuberay_takes(recipe):
    name = timed_name(Path(recipe))
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= 47 and "--" not in name


def test_neither_torch_nor_ray_is_imported(tmp_path):
    heavy = {"torch", "ray", "deepspeed", "transformers", "numpy"}
    script = f"import sys\nfrom zerofleet.launch import cli\nassert cli.main({SUBMIT + PROFILE!r}) == 2\nprint({heavy!r} & set(sys.modules))"
    environment = {
        "PYTHONPATH": ":".join(path for path in sys.path if path),
        "KUBECONFIG": str(tmp_path / "none"),
        "PATH": "",
    }
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


@pytest.mark.parametrize(
    ("deployment", "said", "state"),
    [
        ("Initializing", "PENDING", "PENDING"),
        ("Running", "RUNNING", "RUNNING"),
        ("Running", "FINISHED", "FINISHED"),
        ("Complete", "STOPPED", "STOPPED"),
        ("Complete", "RUNNING", "DEAD"),
        ("Failed", "RUNNING", "FAILED"),
        ("ValidationFailed", "PENDING", "FAILED"),
    ],
)
def test_the_state_is_the_controllers_or_what_it_cannot_say(deployment, said, state):
    assert state_of(observed(ray_job(running(deployment))), Progress(9, state=said)) == state
