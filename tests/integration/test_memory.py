"""Memory that runs out for real: the allocator refuses what a micro-batch needs, and the run goes on with half of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.integration.scarce_driver import BYTES
from tests.support.cli import Cli, assert_audited, losses
from zerofleet.trainer.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


@pytest.fixture
def cli(tmp_path, tiny_corpus):
    cli = Cli(tmp_path, tiny_corpus)
    recipe = yaml.safe_load(cli.recipe.read_text())
    recipe["model"]["attn_implementation"] = "eager"  # keeps scores for backward: some 100 MB for a sequence of 1,024
    recipe["data"] |= {"sequence_length": 1024, "tokenizer_vocab_size": 400, "cache": str(tmp_path / "cache")}
    recipe["train"] |= {"steps": 3, "global_batch_size": 16, "micro_batch_size": 8, "eval_sequences": 2}
    cli.recipe.write_text(yaml.safe_dump(recipe))
    return cli


def drive(cli: Cli, name: str, mebibytes: int, **train) -> tuple[RunFolder, int]:
    recipe = yaml.safe_load(cli.recipe.read_text())
    recipe["train"] |= train
    recipe["run"]["name"] = name
    run = cli.run(name)
    if not run.storage.exists("job.yaml"):
        run.create(yaml.safe_dump(recipe))
    ended = subprocess.run(
        [sys.executable, "-m", "tests.integration.scarce_driver", str(cli.storage), name],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", BYTES: str(mebibytes << 20)},
        timeout=200,
        check=False,
    )
    return run, ended.returncode


def test_micro_batches_are_halved_until_they_fit_and_the_steps_stay_what_they_were(cli):
    run, code = drive(cli, "scarce", 1000, min_micro_batch_size=1)
    assert code == 0
    verdicts = [event.data for event in run.events() if event.kind == "verdict"]
    halved = [data for data in verdicts if data["action"] == "halve"]
    assert {data["class"] for data in halved} == {"host OOM"}
    assert "can't allocate memory" in halved[0]["sentence"]
    sizes = [record.micro_batch_size(8) for record in run.attempts()]
    # Others are retries of what is not known to be about memory: a thread that has no room for its stack.
    assert sorted(set(sizes), reverse=True) == [8, 4, 2, 1][: len(halved) + 1] and sizes == sorted(sizes, reverse=True)
    assert_audited(run, 3)
    plenty, code = drive(cli, "plenty", 20_000)
    assert code == 0
    assert losses(run) == pytest.approx(losses(plenty), rel=1e-5), "the same sequences in every step"
    newest = {line["step"]: line for line in run.read("ledger")}
    assert newest[3]["micro_batch_size"] == sizes[-1] < 8


def test_without_leave_the_run_ends_and_says_of_what(cli):
    run, code = drive(cli, "refused", 500)
    assert code == 1 and all(not record.halved for record in run.attempts())
    assert [event.data["class"] for event in run.events() if event.kind == "verdict"][-1] == "host OOM"
