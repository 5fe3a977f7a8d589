"""What the documentation shows is run."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from tests.support.ranks import job, run_attempt
from zerofleet.cluster.verdict import Class as Verdict
from zerofleet.k8s.monitoring.alerts import alerts
from zerofleet.k8s.profile import LifecycleConfig, MonitoringConfig
from zerofleet.k8s.reasons.reason import ORDER as PENDING
from zerofleet.launch.cli import build_parser
from zerofleet.trainer.data.findings import Kind
from zerofleet.trainer.data.ledger import LedgerEntry
from zerofleet.trainer.run_folder import RunFolder

ROOT = Path(__file__).parent.parent


@pytest.mark.integration
@pytest.mark.timeout(120)
def test_the_reader_in_the_documentation_reads_a_checkpoint_and_finds_damage(tmp_path, tiny_corpus, tiny_cache):
    text = (ROOT / "docs/checkpoint-format.md").read_text()
    script = tmp_path / "read.py"
    script.write_text(re.findall(r"```python\n(.*?)```", text, re.S)[0])
    assert len(script.read_text().splitlines()) <= 65
    config = job(tmp_path, tiny_corpus, train__steps=2)
    assert not run_attempt(config, tiny_cache, 2).errors
    run = RunFolder(config.run.storage, config.run.name)
    folder = run.storage.local_path(run.checkpoints()[-1].folder)
    done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "model.embed_tokens.weight (384, 32)" in done.stdout
    file = folder / "rank-00000-of-00002.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert subprocess.run([sys.executable, script, folder], capture_output=True, timeout=60).returncode != 0


def test_every_kind_of_finding_and_every_field_of_a_ledger_line_is_explained():
    text = (ROOT / "docs/audit.md").read_text()
    rows = {name for cells in re.findall(r"^\| (`.*?`) \|", text, re.M) for name in re.findall(r"`(\w+)`", cells)}
    assert rows == {*get_args(Kind), *(field.name for field in fields(LedgerEntry))}


def test_every_reason_and_every_verdict_has_a_first_command():
    text = (ROOT / "docs/operations.md").read_text()
    rows = {name for cells in re.findall(r"^\| ([^|`]*?) \| [^|]", text, re.M) for name in cells.split(", ")}
    assert {*PENDING, *get_args(Verdict)} <= rows


def test_every_alert_has_a_first_command_and_the_section_that_it_points_to():
    text = (ROOT / "docs/operations.md").read_text()
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.M)
    }
    for alert in alerts(MonitoringConfig(), LifecycleConfig()):
        assert re.search(rf"^\| {alert.name} \| `", text, re.M), alert.name
        assert alert.section in anchors


def test_the_verbs_that_are_named_to_whoever_is_paged_are_there():
    text = (ROOT / "docs/operations.md").read_text()
    verbs = build_parser()._subparsers._group_actions[0].choices
    assert set(re.findall(r"`zerofleet (\w+)", text)) <= set(verbs)
