"""A job of two silos."""

import pytest

RECIPE = """
run: {name: r, storage: /runs}
model: {config: {model_type: llama, hidden_size: 64}}
data: {files: [python-stdlib], sequence_length: 64}
train: {steps: 20, global_batch_size: 8, micro_batch_size: 2}
silos:
  interval_steps: 5
  members:
    a: {files: [a/*.txt], ranks_per_node: 1, zero_stage: 3}
    b: {files: [b/*.txt], weight: 2.0}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path
