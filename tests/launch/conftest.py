"""A storage folder of its own for every test, a small recipe, and a driver without Ray."""

from pathlib import Path

import pytest

from zerofleet.launch import cli
from zerofleet.launch.backends import local

RECIPE = """
model: {config: {model_type: llama, hidden_size: 64}}
data: {files: [python-stdlib], sequence_length: 64}
train: {steps: 3, global_batch_size: 8, micro_batch_size: 2}
cluster: {ranks_per_node: 2, cpus_per_rank: 0.1}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Path:
    """A valid recipe, in a working directory of its own that also holds the runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZEROFLEET_STORAGE", str(tmp_path / "runs"))
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def drive(monkeypatch):
    """`drive("finish")`: from now on drivers follow that script of fake_driver.py."""
    monkeypatch.setattr(local, "DRIVER_MODULE", "tests.launch.fake_driver")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return lambda script: monkeypatch.setenv("FAKE_DRIVER", script)


@pytest.fixture
def zerofleet(recipe, capsys):
    """Calls the command line; returns exit code, stdout and stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
