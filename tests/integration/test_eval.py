"""`zerofleet eval` against what the run itself has found on the same data."""

import json

import pytest

from tests.support.ranks import job, run_attempt
from zerofleet.launch import cli
from zerofleet.trainer.run_folder import RunFolder

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


@pytest.fixture
def evaluated(capsys):
    def call(*arguments: object) -> dict:
        assert cli.main(["eval", *map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


def test_the_loss_is_the_runs_own_and_other_data_is_cut_as_its_own(tmp_path, tiny_corpus, tiny_cache, evaluated):
    config = job(tmp_path, tiny_corpus, train__eval_sequences=0, train__steps=4, train__eval_interval_steps=2)
    outcome = run_attempt(config, tiny_cache, 2)
    assert not outcome.errors
    own = {event.step: event.data for event in outcome.of("eval")}
    run = RunFolder(config.run.storage, config.run.name)
    path = str(run.storage.local_path(""))
    newest = evaluated(path)
    assert newest["loss"] == pytest.approx(own[4]["loss"], abs=1e-5) and newest["tokens"] == own[4]["tokens"]
    assert newest["sequences"] == tiny_cache.heldout.num_sequences
    earlier = evaluated(f"{path.rstrip('/')}@2")
    assert earlier["loss"] == pytest.approx(own[2]["loss"], abs=1e-5)
    assert abs(earlier["loss"] - newest["loss"]) > 1e-3, "another model"
    assert cli.main(["export", path, "--output", str(tmp_path / "model")]) == 0
    of_data = ("--data", f"{tiny_corpus}/*.txt")
    exported = evaluated(tmp_path / "model", *of_data, "--sequence-length", 32)
    all_tokens = tiny_cache.train.num_tokens + tiny_cache.heldout.num_tokens
    assert exported["tokens"] == all_tokens - 1, "every token but the first, of every document"
    of_run = evaluated(path, *of_data)
    assert (of_run["tokens"], of_run["sequences"]) == (exported["tokens"], exported["sequences"]), (
        "the run's own length"
    )
    assert of_run["loss"] == pytest.approx(exported["loss"], abs=1e-5), "and tokenizer"
    few = evaluated(path, *of_data, "--sequences", 5)
    assert (few["sequences"], few["tokens"]) == (5, 5 * 32)
