"""Documents that share a sequence are computed as if each were alone, and a model that cannot do that is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from zerofleet.trainer.data.feed import read_block
from zerofleet.trainer.data.packing import packed
from zerofleet.trainer.data.sequences import PackedStore, SequenceStore
from zerofleet.trainer.document_mask import check_document_mask
from zerofleet.trainer.errors import UserError

CPU = torch.device("cpu")
MODELS = {
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
    "opt": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
    },
}
TOKENS_OF_DOCUMENTS = [9, 40, 3, 17, 2, 25, 31, 64, 11, 70, 5]


def model_of(model_type, attention="sdpa"):
    torch.manual_seed(0)
    ids = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **MODELS[model_type], **ids), attn_implementation=attention
    )
    model.config.use_cache = False  # as build_model does
    return model.eval()


@pytest.fixture(params=["best_fit", "concatenate"])
def store(request):
    ends = np.cumsum(TOKENS_OF_DOCUMENTS)
    tokens = np.random.default_rng(5).integers(1, 300, ends[-1]).astype("<u2")
    tokens[ends - 1] = 0
    if request.param == "concatenate":
        return SequenceStore(tokens, ends, 64)
    ((pieces, sequences),) = packed(ends, 64)
    return PackedStore(tokens, ends, 64, pieces, sequences)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_the_logits_of_a_document_are_those_of_the_document_alone(store, model_type, attention):
    model = model_of(model_type, attention)
    samples = np.arange(store.num_sequences)
    batch = read_block(store, 0, samples, len(samples) + 1, document_mask=True)
    inputs = {name: torch.from_numpy(values) for name, values in batch.inputs.items()}
    with torch.no_grad():
        together, unmasked = model(**inputs).logits, model(input_ids=inputs["input_ids"]).logits
    num_documents, worst_unmasked = 0, 0.0
    for row in range(len(samples)):
        starts = np.flatnonzero(batch.inputs["position_ids"][row] == 0)
        for start, end in zip(starts, [*starts[1:], store.sequence_length], strict=True):
            with torch.no_grad():
                alone = model(input_ids=inputs["input_ids"][row : row + 1, start:end]).logits[0]
            torch.testing.assert_close(together[row, start:end], alone, rtol=0, atol=1e-5)
            worst_unmasked = max(worst_unmasked, float((unmasked[row, start:end] - alone).abs().max()))
            num_documents += 1
    assert num_documents > len(samples) + 5, "sequences that hold one document each prove nothing"
    assert worst_unmasked > 1e-2


class Engine:
    """The surface of DeepSpeed's that the check uses."""

    def __init__(self, module):
        self.module, self.eval, self.train = module, module.eval, module.train

    def __call__(self, **inputs):
        return self.module(**inputs)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_a_model_that_keeps_documents_apart_passes(model_type, attention):
    engine = Engine(model_of(model_type, attention))
    for num_rows, sequence_length in [(1, 2), (4, 64)]:
        check_document_mask(engine, num_rows, sequence_length, CPU)
    assert engine.module.training


@pytest.mark.parametrize("model_type", ["falcon", "opt"])
def test_a_model_that_lets_them_mix_is_refused(model_type):
    """Falcon with ALiBi and OPT take position ids and do not heed them when they mask."""
    with pytest.raises(
        UserError, match=r"changes the logits of \w+ForCausalLM by 0\.\d+ .*Set data.document_mask=false"
    ):
        check_document_mask(Engine(model_of(model_type)), 2, 64, CPU)


def test_a_small_leak_is_one_too():
    """State spaces forget within a few tokens: what is left is far below the logits and far above rounding."""
    model = model_of("llama")
    whole = model.model.embed_tokens.forward
    model.model.embed_tokens.forward = lambda ids: whole(ids) + 1e-5 * whole(ids).cumsum(1)
    with pytest.raises(UserError, match="does not keep documents apart"):
        check_document_mask(Engine(model), 2, 64, CPU)
