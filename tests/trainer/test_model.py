"""Initial weights: the model's own distribution, whatever the stage; mistakes are refused in words."""

from __future__ import annotations

import contextlib

import pytest
import torch
from transformers import AutoModelForCausalLM

from zerofleet.trainer.config import ModelConfig, TrainConfig
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.model import build_model, check, resolve_config, shape_of

MODELS = {
    "llama": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "gpt2": {"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "qwen2": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}


def config_of(model_type, **fields):
    return TrainConfig(
        model={"config": {"model_type": model_type, **MODELS[model_type], **fields}},
        data={"files": ["unused"]},
        train={"steps": 1, "global_batch_size": 1, "micro_batch_size": 1},
    )


@pytest.mark.parametrize("model_type", sorted(MODELS))
@pytest.mark.parametrize("tied", [True, False])
def test_the_std_of_every_initial_parameter_is_the_models_own(model_type, tied):
    config = config_of(model_type, tie_word_embeddings=tied)
    resolved = resolve_config(config.model, 1000)
    ours = dict(build_model(config, resolved, contextlib.nullcontext(), on_gpu=False).named_parameters())
    torch.manual_seed(0)
    theirs = dict(AutoModelForCausalLM.from_config(resolved).named_parameters())
    assert list(ours) == list(theirs)
    for name, parameter in theirs.items():
        assert float(ours[name].std()) == pytest.approx(float(parameter.std()), rel=0.05), name
        assert float(ours[name].mean()) == pytest.approx(float(parameter.mean()), abs=0.002), name


def test_initial_weights_depend_on_the_seed_and_on_nothing_else():
    config = config_of("llama")
    resolved = resolve_config(config.model, 1000)

    def weights(seed):
        seeded = config.model_copy(update={"run": config.run.model_copy(update={"seed": seed})})
        torch.manual_seed(torch.seed() % 1000)
        return torch.cat(
            [p.flatten() for p in build_model(seeded, resolved, contextlib.nullcontext(), on_gpu=False).parameters()]
        )

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_a_parameter_is_counted_once_and_its_flops_are_palms():
    config = config_of("llama", tie_word_embeddings=True)
    model = build_model(config, resolve_config(config.model, 1000), contextlib.nullcontext(), on_gpu=False)
    shape = shape_of(model)
    assert shape.num_parameters == shape.num_matmul_parameters == sum(p.numel() for p in model.parameters())
    assert shape.flops_per_token(64) == 6 * shape.num_parameters + 12 * 2 * 4 * 32 * 64
    untied = config_of("llama", tie_word_embeddings=False)
    other = shape_of(build_model(untied, resolve_config(untied.model, 1000), contextlib.nullcontext(), on_gpu=False))
    assert other.num_parameters - other.num_matmul_parameters == 1024 * 128


def test_without_a_vocabulary_size_the_tokenizers_is_rounded_up():
    assert resolve_config(ModelConfig(config={"model_type": "llama"}), 1000).vocab_size == 1024


class Cache:
    tokenizer_size = 1000


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"vocab_size": 500}, "1000 entries and the model's vocabulary only 500"),
        ({"max_position_embeddings": 16}, "sequence_length is 512 and the model has 16 positions"),
        ({"hiden_size": 5}, "hiden_size, which LlamaConfig does not have; did you mean hidden_size?"),
        ({"num_attention_heads": 7}, r"is not a multiple of the number of attention heads \(7\)"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(fields, words):
    with pytest.raises(UserError, match=words):
        check(config_of("llama", **fields), Cache())


def test_a_model_without_positions_cannot_keep_documents_apart():
    config = config_of("llama")
    masked = config.data.model_copy(update={"document_mask": True})
    check(config.model_copy(update={"data": masked}), Cache())
    mamba = ModelConfig(config={"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 1})
    check(config.model_copy(update={"model": mamba}), Cache())
    with pytest.raises(
        UserError, match=r"document_mask=true: MambaForCausalLM takes no position_ids.*document_mask=false"
    ):
        check(config.model_copy(update={"model": mamba, "data": masked}), Cache())


def test_an_unknown_model_type_and_folder_are_refused():
    with pytest.raises(UserError, match="'lama' is not a model of transformers; did you mean llama"):
        resolve_config(ModelConfig(config={"model_type": "lama"}), 10)
    with pytest.raises(UserError, match="/no/such/folder"):
        resolve_config(ModelConfig(pretrained="/no/such/folder"), 10)
