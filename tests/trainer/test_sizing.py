"""Closed-form counts against transformers' own models, and the bytes that follow from them."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support.ranks import job
from zerofleet.trainer.checkpoint.buffers import Buffers
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.sizing import StateSizes, num_parameters, parameters_of, vocabulary_of

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
MODELS = [
    {"model_type": "llama", **SMALL},
    {"model_type": "llama", **SMALL, "num_key_value_heads": 2, "tie_word_embeddings": True},
    {"model_type": "llama", **SMALL, "attention_bias": True, "mlp_bias": True, "head_dim": 32},
    {"model_type": "mistral", **SMALL, "num_key_value_heads": 1},
    {"model_type": "qwen2", **SMALL, "num_key_value_heads": 2},
    {"model_type": "qwen3", **SMALL, "num_key_value_heads": 2},
    {"model_type": "qwen3", **SMALL, "num_key_value_heads": 2, "head_dim": 16, "attention_bias": True},
    {"model_type": "gpt2", "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128},
    {"model_type": "gpt2", "hidden_size": 64, "n_head": 4, "n_inner": 100, "tie_word_embeddings": False},
    {"model_type": "gpt_neox", **SMALL},
    {"model_type": "gpt_neox", **SMALL, "tie_word_embeddings": True, "attention_bias": False},
]


def counted(fields: dict) -> int:
    """What transformers builds."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("fields", MODELS, ids=lambda fields: fields["model_type"])
def test_parameters_are_those_of_the_model(fields):
    assert num_parameters(fields, 512) == counted({**fields, "vocab_size": 512})


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox"])
def test_fields_that_are_left_out_have_transformers_defaults(model_type):
    fields = {"model_type": model_type}
    assert num_parameters(fields, 512) == counted({**fields, "vocab_size": 512})


@pytest.mark.parametrize("value", [0, -4, 4.0, True, "x", [4]])
@pytest.mark.parametrize(
    ("model_type", "field"),
    [
        ("llama", "num_attention_heads"),
        ("llama", "num_key_value_heads"),
        ("qwen3", "head_dim"),
        ("gpt2", "n_embd"),
        ("gpt2", "n_inner"),
        ("gpt2", "max_position_embeddings"),
        ("gpt_neox", "num_hidden_layers"),
    ],
)
def test_a_size_is_a_positive_whole_number(model_type, field, value):
    with pytest.raises(UserError) as refused:
        num_parameters({"model_type": model_type, field: value}, 512)
    assert f"model.config.{field} is {value!r}" in str(refused.value)


@pytest.mark.parametrize("value", [0, "x", True])
def test_a_vocabulary_is_one_too(tmp_path, tiny_corpus, value):
    config = job(tmp_path, tiny_corpus)
    model = config.model.model_copy(update={"config": {"model_type": "llama", "vocab_size": value}})
    with pytest.raises(UserError, match=r"model\.config\.vocab_size is "):
        vocabulary_of(config.model_copy(update={"model": model}))


def test_what_cannot_be_known_is_not_guessed(tmp_path, tiny_corpus):
    assert num_parameters({"model_type": "bert"}, 512) is None
    config = job(tmp_path, tiny_corpus)
    assert vocabulary_of(config) is not None and parameters_of(config) is not None
    hub = config.data.model_copy(update={"tokenizer": "org/tokenizer"})
    model = config.model.model_copy(update={"config": {"model_type": "llama"}})
    assert parameters_of(config.model_copy(update={"data": hub, "model": model})) is None


def test_the_vocabulary_is_rounded_as_the_model_rounds_it(tmp_path, tiny_corpus):
    config = job(tmp_path, tiny_corpus)
    fields = {key: value for key, value in config.model.config.items() if key != "vocab_size"}
    data = config.data.model_copy(update={"tokenizer_vocab_size": 8130})
    model = config.model.model_copy(update={"config": fields})
    assert vocabulary_of(config.model_copy(update={"data": data, "model": model})) == 8192


@pytest.mark.parametrize(
    ("stage", "precision", "bytes_per_parameter"),
    [(0, "fp32", 16), (0, "bf16", 16), (1, "bf16", 2 + 4 + 12 / 8), (2, "bf16", 2 + (4 + 12) / 8), (3, "bf16", 18 / 8)],
)
def test_a_ranks_state(stage, precision, bytes_per_parameter):
    sizes = StateSizes(8_000_000, stage, precision, nodes=2, ranks_per_node=4)
    assert sizes.rank_bytes == int(8_000_000 * bytes_per_parameter)


def test_snapshots_are_shared_by_the_nodes_and_buffers_have_room_for_their_description():
    sizes = StateSizes(1000, 1, "bf16", nodes=3, ranks_per_node=2)
    assert (sizes.checkpoint_bytes, sizes.snapshot_bytes) == (12_000, 4_000)
    assert sizes.buffer_bytes(Buffers(5, 2)) == 7 * (4_000 + 2 * 2**20)
