"""`zerofleet eval`: what is refused before anything is read."""

from __future__ import annotations

import os

import pytest

from zerofleet.launch import cli
from zerofleet.launch.config import load_job
from zerofleet.trainer.run_folder import RunFolder


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["nowhere"], 4, "no run 'nowhere'"),
        (["a@x"], 2, "'x' is no step"),
        (["a@7"], 4, "no checkpoint of step 7"),
        (["a", "--sequences", "-1"], 2, "--sequences is -1"),
        (["model"], 2, "give --data and --sequence-length"),
        (["model", "--data", "recipe.yaml"], 2, "give --data and --sequence-length"),
        (["model", "--data", "recipe.yaml", "--sequence-length", "1"], 2, "--sequence-length=1: a token is told from"),
    ],
)
def test_mistakes(recipe, tmp_path, capsys, arguments, code, part):
    run = RunFolder(os.environ["ZEROFLEET_STORAGE"], "a")
    run.create(load_job("recipe.yaml", ["run.name=a"]).to_yaml())
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    assert cli.main(["eval", *arguments]) == code
    out, err = capsys.readouterr()
    assert out == "" and part in err and err.startswith("error: ")
