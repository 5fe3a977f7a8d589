"""The same input gives the same bytes: kept beside this file. After a change that is meant:
`UPDATE_GOLDEN=1 python -m pytest tests/k8s/test_golden.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.k8s.support import PROFILES, QUICKSTART, ROOT, rendered, workload
from zerofleet.k8s.to_yaml import to_yaml
from zerofleet.launch.workload import load_profile

JOB = "run:\n  name: first\n"
"""In the place of the resolved job, whose fields are more every week."""


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_what_is_rendered_is_what_it_was(path):
    text = to_yaml(rendered(load_profile(path), replace(workload(path), job_yaml=JOB)))
    golden = ROOT / f"tests/k8s/golden-{path.name}"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert golden.read_text() == text


def test_neither_time_nor_process_nor_folder_is_in_it(tmp_path):
    command = [sys.executable, "-m", "zerofleet.launch", "k8s", "render", str(QUICKSTART), "run.name=first"]
    command += ["--profile", str(PROFILES[0])]
    outputs = set()
    for seed, folder in (("0", ROOT), ("1", tmp_path)):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        done = subprocess.run(command, capture_output=True, cwd=folder, env=environment, timeout=60, check=True)
        outputs.add(done.stdout)
    assert len(outputs) == 1 and outputs.pop().startswith(b"# rendered by zerofleet")
