"""`zerofleet partition`: parts for silos from a recipe's corpus, and the section that names them."""

from __future__ import annotations

import json

import pytest
import yaml

from zerofleet.launch.cli import main
from zerofleet.launch.config import load_job

RECIPE = """
model: {config: {model_type: llama, hidden_size: 16, num_attention_heads: 2, num_hidden_layers: 1, intermediate_size: 16}}
data: {files: [FILES]}
train: {steps: 2, global_batch_size: 2, micro_batch_size: 1}
"""


@pytest.fixture
def recipe(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        lines = (json.dumps({"text": f"{name} {number}"}) for number in range(30))
        (tmp_path / name / "all.jsonl").write_text("\n".join(lines))
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("FILES", f'"{tmp_path}/*/all.jsonl"'))
    return path


def test_what_it_prints_goes_into_a_recipe_as_it_is(recipe, tmp_path, capsys):
    arguments = ["--into", "2", "--by", "DirichletPartitioner", "--option", "alpha=0.5"]
    assert main(["partition", str(recipe), str(tmp_path / "parts"), "run.seed=3", *arguments]) == 0
    printed = capsys.readouterr().out
    sections = yaml.safe_load(printed)["silos"]["members"]
    assert list(sections) == ["part-0", "part-1"]
    counts = [len((tmp_path / "parts" / f"{name}.jsonl").read_text().splitlines()) for name in sections]
    assert sum(counts) == 60 and printed.startswith(f"# part-0.jsonl: {counts[0]} documents, ")
    (tmp_path / "silos.yaml").write_text(recipe.read_text() + printed)
    assert list(load_job(tmp_path / "silos.yaml").silos.members) == ["part-0", "part-1"]
    assert json.loads((tmp_path / "parts/partition.json").read_text())["seed"] == 3


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--by", "Nobody"], "there is no partitioner 'Nobody'; there are IidPartitioner"),
        (["--by", "DirichletPartitioner"], "alpha has to be given"),
        (["--option", "alpha"], "--option alpha is not of the form key=value"),
    ],
)
def test_mistakes(recipe, tmp_path, capsys, arguments, why):
    assert main(["partition", str(recipe), str(tmp_path / "parts"), "--into", "2", *arguments]) == 2
    assert why in capsys.readouterr().err and not (tmp_path / "parts").exists()
