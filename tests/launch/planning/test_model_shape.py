"""Where the model's sizes are from."""

from __future__ import annotations

import json

import pytest

from zerofleet.launch.config import parse_job
from zerofleet.launch.planning.model_shape import model_of, planned_by_closed_form
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.sizing import num_parameters

JOB = """
model: {config: {model_type: llama, hidden_size: 64, intermediate_size: 128, num_attention_heads: 4, num_hidden_layers: 2}}
data: {files: [python-stdlib]}
train: {steps: 3, global_batch_size: 8, micro_batch_size: 2, precision: fp32}
"""


def job(*overrides: str):
    return parse_job(JOB, "test", overrides)


def test_a_known_type_needs_no_torch():
    found = model_of(job("model.config.vocab_size=512"))
    fields = job().model.config
    assert (found.sizes.parameters, found.source) == (num_parameters(fields, 512), "closed form")


def test_a_folder_says_what_its_config_says(tmp_path):
    fields = {**job().model.config, "vocab_size": 512}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    found = planned_by_closed_form(job("model.config={}", f"model.pretrained={tmp_path}"))
    assert found is not None and found.sizes.parameters == num_parameters(fields, 512)


def test_a_folder_that_is_damaged_is_said(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        model_of(job("model.config={}", f"model.pretrained={tmp_path}"))


def test_a_tokenizer_that_is_not_loaded_leaves_the_vocabulary_open():
    hub = job("data.tokenizer=org/name")
    assert planned_by_closed_form(hub) is None
    with pytest.raises(UserError, match="set model.config.vocab_size"):
        model_of(hub)


def test_other_types_are_counted_on_meta_tensors():
    found = model_of(job("model.config.model_type=olmo2", "model.config.vocab_size=512"))
    assert found.source == "meta tensors" and found.sizes.num_layers == 2
