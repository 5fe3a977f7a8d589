"""What `zerofleet k8s render` writes really trains: its entrypoint, environment, start parameters and hook, with raylets for pods.

No kubelet and no KubeRay: images, volumes, limits and queues are not tried here.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.k8s.support import changed_profile
from tests.support.cli import losses, positions
from tests.support.ranks import job
from zerofleet.k8s.lint import lint
from zerofleet.k8s.rayjob import documents
from zerofleet.k8s.to_yaml import to_yaml
from zerofleet.launch.config import parse_job
from zerofleet.launch.workload import workload_of
from zerofleet.trainer.run_folder import RunFolder
from zerofleet.trainer.sizing import parameters_of
from zerofleet.trainer.world import free_port

pytestmark = [pytest.mark.integration, pytest.mark.further, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
STEPS = 400


def render(mount: Path, corpus: Path, port: int):
    """A tiny recipe for one worker pod with two ranks; `mount` is the claim."""
    sections = job(mount, corpus, train__steps=STEPS).model_dump(mode="json", exclude_unset=True)
    sections["model"]["config"]["vocab_size"] = 512
    sections["run"] = {"name": "rendered", "storage": f"{mount}/runs"}
    sections["checkpoint"] = {"interval_steps": 0, "export": False}
    sections["data"] |= {"files": [str(shutil.copytree(corpus, mount / "corpus") / "*.txt")], "cache": None}
    sections["cluster"] = {"ranks_per_node": 2, "cpus_per_rank": 0.5, "stop_timeout_s": 60}
    config = parse_job(yaml.safe_dump(sections), "recipe")
    cpu = ROOT / "k8s/profiles/cpu.yaml"
    small = {"storage__mount_path": str(mount), "limits__object_store_gib": 0.1, "fabric__interface": "lo"}
    profile = changed_profile(cpu, **small, monitoring__port=port)
    load = workload_of(config, profile)
    errors = [str(f) for f in lint(profile, load) if f.level == "error"]
    assert errors == []
    return config, to_yaml(documents(profile, load))


def test_a_rendered_job_trains_saves_when_asked_and_is_not_done_twice(tmp_path, tiny_corpus):
    mount = tmp_path / "claim"
    mount.mkdir()
    port = free_port()
    config, text = render(mount, tiny_corpus, port)
    (tmp_path / "rendered.yaml").write_text(text)
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_ADDRESS": ""}
    command = [sys.executable, "-m", "tests.integration.rendered_pods", str(tmp_path / "rendered.yaml"), str(tmp_path)]
    python_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **token, "PYTHONPATH": python_path}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    lines = [line for line in done.stdout.splitlines() if line.startswith("SEEN ")]
    assert lines, done.stdout[-3000:] + done.stderr[-3000:]
    seen = json.loads(lines[0].removeprefix("SEEN "))

    run = RunFolder(f"{mount}/runs", "rendered")
    assert (seen["driver"], seen["again"]) == (0, 0), done.stderr[-3000:]
    assert sorted(losses(run)) == list(range(1, STEPS + 1))
    assert positions(run) == list(range(STEPS * config.train.global_batch_size))
    said = [event.data["message"] for event in run.events() if event.kind in ("info", "incident")]
    assert [message for message in said if f"0.0.0.0:{port}" in message], (
        "the driver was told where to answer Prometheus"
    )
    assert seen["save"] == 0 and len(seen["during"]) == 1 and seen["during"][0] < f"step-{STEPS:08d}"
    assert seen["hook_after_the_end"] == 0 and seen["hook_after_the_end_s"] < 5

    newest = run.storage.local_path(run.checkpoints()[-1].folder)
    written = sum(file.stat().st_size for file in newest.glob("rank-*"))
    expected = 12 * parameters_of(config.train_config())
    assert expected < written < expected + (256 << 10)  # descriptions of fragments, and buffers
