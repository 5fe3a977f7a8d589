"""Closed-form counts against transformers' own models: parameters, shapes, and what layers keep for their backward."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support.ranks import job
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.sizing import num_parameters, parameters_of, sizes_of, vocabulary_of
from zerofleet.trainer.sizing.memory import activation_bytes
from zerofleet.trainer.sizing.setup import Setup

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


# -- what layers keep -----------------------------------------------------------------------------------------------------
TOKENS = 64


def kept_bytes(fields: dict, num_layers: int, dtype: torch.dtype, attention: str = "sdpa") -> int:
    """Bytes that torch keeps of one forward for its backward, every tensor once, weights apart."""
    layers = "n_layer" if fields["model_type"] == "gpt2" else "num_hidden_layers"
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**{**fields, layers: num_layers, "vocab_size": 512}), attn_implementation=attention
    ).to(dtype)
    model.train()
    model.config.use_cache = False
    weights = {id(parameter.untyped_storage()): parameter for parameter in model.parameters()}
    own = {parameter.untyped_storage().data_ptr() for parameter in weights.values()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # kept alive, so that no address is given twice
        return tensor

    ids = torch.zeros(1, TOKENS, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=ids)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fields", MODELS, ids=lambda fields: fields["model_type"])
def test_a_layer_keeps_what_torch_keeps_of_it(fields, dtype):
    sizes = sizes_of(fields, 512)
    element = 4 if dtype == torch.float32 else 2
    counted_of = kept_bytes(fields, 2, dtype) - kept_bytes(fields, 1, dtype)
    per_token = element * sizes.kept_elements + 4 * sizes.kept_fp32_elements
    reckoned = TOKENS * (per_token + 4 * TOKENS * sizes.kept_elements_per_pair)
    assert reckoned == pytest.approx(
        counted_of, rel=0.03
    )  # attention outside of one kernel keeps a copy more in 16 bits


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("fields", MODELS, ids=lambda fields: fields["model_type"])
def test_a_layer_keeps_its_scores_where_attention_is_plain_matmuls(fields, precision):
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    counted = kept_bytes(fields, 2, dtype, "eager") - kept_bytes(fields, 1, dtype, "eager")
    sizes = sizes_of(fields, 512)
    setup = Setup(1, precision, 1, TOKENS, 1, 1, 1, on_gpu=False, asked_attention="eager")
    once, twice = (activation_bytes(replace(sizes, num_layers=layers), setup) for layers in (1, 2))
    assert 0.97 <= (twice - once) / counted <= 1.08


@pytest.mark.parametrize("fields", MODELS, ids=lambda fields: fields["model_type"])
def test_shapes_are_those_of_the_model(fields):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**fields, "vocab_size": 512}))
    sizes = sizes_of(fields, 512)
    assert sizes.largest_parameter == max(parameter.numel() for parameter in model.parameters())
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == sizes.num_layers)
    assert sizes.layer_parameters == sum(parameter.numel() for parameter in layers[0].parameters())
    embedding = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is embedding
    assert sizes.matmul_parameters == sizes.parameters - (0 if tied else embedding.numel())
