"""Sizes counted on meta tensors: those of the closed forms where both know a model, and models that only transformers knows."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from zerofleet.trainer.config import ModelConfig
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.meta_model import measure
from zerofleet.trainer.sizing import sizes_of

WIDE = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 3, "num_attention_heads": 4}
KNOWN = [
    {"model_type": "llama", **WIDE, "num_key_value_heads": 2, "tie_word_embeddings": True},
    {"model_type": "qwen2", **WIDE, "num_key_value_heads": 2},
    {"model_type": "gpt_neox", **WIDE},
]
OTHER = [
    {"model_type": "olmo2", **WIDE},
    {"model_type": "gemma", **WIDE, "head_dim": 64},
    {"model_type": "mixtral", **WIDE, "num_local_experts": 4},
    {"model_type": "opt", "hidden_size": 256, "ffn_dim": 512, "num_hidden_layers": 3, "num_attention_heads": 4},
]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("fields", KNOWN, ids=lambda fields: fields["model_type"])
def test_it_counts_what_the_closed_forms_say(fields, precision):
    found, closed = measure(ModelConfig(config=fields), 512, precision, 64), sizes_of(fields, 512)
    assert closed is not None
    for name in ("parameters", "matmul_parameters", "num_layers", "hidden", "attention_width", "largest_parameter"):
        assert getattr(found, name) == getattr(closed, name), name
    assert found.layer_parameters == closed.layer_parameters
    element = 4 if precision == "fp32" else 2
    kept = [element * sizes.kept_elements + 4 * sizes.kept_fp32_elements for sizes in (found, closed)]
    assert kept[0] == pytest.approx(kept[1], rel=0.1)  # what lies around the layers is spread over them


@pytest.mark.parametrize("fields", OTHER, ids=lambda fields: fields["model_type"])
def test_any_causal_model_of_transformers(fields):
    found = measure(ModelConfig(config={**fields, "vocab_size": 512}), None, "bf16", 64)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**fields, "vocab_size": 512}))
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.num_layers == 3 and found.kept_elements > 4 * found.hidden


def test_hundreds_of_billions_of_parameters():
    fields = {
        "model_type": "olmo2",
        "hidden_size": 16384,
        "intermediate_size": 53248,
        "num_hidden_layers": 126,
        "num_attention_heads": 128,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    }
    found = measure(ModelConfig(config=fields), None, "bf16", 8192)
    assert 400e9 < found.parameters < 420e9


def test_a_model_that_cannot_be_trained_is_refused():
    with pytest.raises(UserError, match="T5Config has no causal language model"):
        measure(ModelConfig(config={"model_type": "t5"}), None, "bf16", 64)


@pytest.mark.parametrize(
    ("fields", "is_plain"),
    [
        ({"model_type": "llama"}, True),
        ({"model_type": "gpt_neox"}, True),
        ({"model_type": "gemma2", "head_dim": 16, "final_logit_softcapping": 30.0}, False),
        ({"model_type": "cohere", "logit_scale": 0.0625}, False),
        ({"model_type": "phi"}, False),
    ],
)
def test_what_becomes_of_the_logits_is_seen(fields, is_plain):
    small = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    found = measure(ModelConfig(config={**small, **fields}), 512, "bf16", 64)
    assert found.returns_plain_logits is is_plain
