"""The fused loss against whole logits: values, gradients, chunks, and models that do more with their logits than return them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from zerofleet.trainer import token_loss
from zerofleet.trainer.data.sequences import IGNORED_LABEL
from zerofleet.trainer.token_loss import TokenLoss, plain_loss

pytestmark = pytest.mark.timeout(60)
SMALL = {
    "vocab_size": 160,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
}
MODELS = {
    "llama": SMALL,
    "gpt2": {"vocab_size": 160, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64},
    "gpt_neox": SMALL,
}
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


def model_of(model_type, dtype=torch.float32, **fields):
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**MODELS.get(model_type, SMALL), **fields}, use_cache=False)
    return AutoModelForCausalLM.from_config(config).to(dtype)


def batch():
    generator = torch.Generator().manual_seed(1)
    ids, labels = (torch.randint(0, 160, (3, 24), generator=generator) for _ in range(2))
    labels[1, 5:] = IGNORED_LABEL
    return {"input_ids": ids}, labels


def gradients(model, loss):
    model.zero_grad()
    (loss * 0.25).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_equal(model, fused, inputs, labels, dtype):
    """Loss and gradients of both ways, from the same generators."""
    torch.manual_seed(3)
    found = fused(model, inputs, labels)
    ours = gradients(model, found)
    torch.manual_seed(3)
    expected = plain_loss(model(**inputs).logits, labels)
    theirs = gradients(model, expected)
    assert found.dtype == torch.float32 and found.dim() == 0
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        difference = (ours[name].float() - gradient.float()).norm()
        assert difference <= ROUNDING[dtype] * gradient.float().norm(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [None, 7, 1])
@pytest.mark.parametrize("model_type", MODELS)
def test_loss_and_gradients_are_those_of_whole_logits(model_type, rows, dtype, monkeypatch):
    if rows:
        monkeypatch.setitem(token_loss.LOSS_CHUNK_BYTES, False, rows * 160 * dtype.itemsize)
        monkeypatch.setitem(token_loss._WORKED_ON_BYTES, False, 3 * 160 * 4)
    model = model_of(model_type, dtype)
    fused = TokenLoss(model)
    assert_equal(model, fused, *batch(), dtype)
    assert fused.is_fused


def test_tied_and_frozen_embeddings():
    inputs, labels = batch()
    tied = model_of("llama", tie_word_embeddings=True)
    assert_equal(tied, TokenLoss(tied), inputs, labels, torch.float32)
    frozen = model_of("llama")
    frozen.lm_head.weight.requires_grad_(False)
    assert_equal(frozen, TokenLoss(frozen), inputs, labels, torch.float32)


def test_probabilities_too_small_for_a_float_still_have_a_loss():
    logits = torch.tensor([[[0.0, 300.0, -300.0]]], requires_grad=True)
    labels = torch.tensor([[2]])
    rows = logits.detach().clone().view(1, 3)
    loss = token_loss._to_gradients(rows, labels, keep=True)
    assert float(loss) == pytest.approx(600.0) == pytest.approx(float(plain_loss(logits, labels)))
    assert rows.tolist() == [[0.0, 1.0, -1.0]]


def test_nothing_but_padding_is_zero_with_a_zero_gradient():
    model = model_of("llama")
    inputs, labels = batch()
    loss = TokenLoss(model)(model, inputs, torch.full_like(labels, IGNORED_LABEL))
    assert float(loss) == 0.0
    assert all(not gradient.any() for gradient in gradients(model, loss).values())


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("gemma2", {"final_logit_softcapping": 5.0}),
        ("cohere", {"logit_scale": 0.5}),
        ("granite", {"logits_scaling": 3.0}),
    ],
)
def test_logits_that_are_scaled_or_capped_stay_whole(model_type, fields):
    model = model_of(model_type, **fields)
    fused = TokenLoss(model)
    assert_equal(model, fused, *batch(), torch.float32)
    assert not fused.is_fused


def test_logits_that_are_cut_stay_whole():
    model = model_of("llama")
    inputs, labels = batch()
    fused = TokenLoss(model)

    def engine(**inputs):
        return SimpleNamespace(logits=model(**inputs).logits[..., :150])

    assert float(fused(engine, inputs, labels.clamp(max=149))) > 0
    assert not fused.is_fused


def test_a_head_with_a_bias_and_fp16_stay_whole():
    assert not TokenLoss(model_of("phi")).is_fused
    assert not TokenLoss(model_of("llama", torch.float16)).is_fused


def test_trying_draws_nothing():
    """The first batch's dropout is that of every later one with its seed."""
    model = model_of("gpt2").train()
    inputs, labels = batch()
    fused = TokenLoss(model)
    torch.manual_seed(5)
    first = float(fused(model, inputs, labels))
    torch.manual_seed(5)
    assert float(fused(model, inputs, labels)) == first


def test_without_gradients_none_is_made(monkeypatch):
    model = model_of("llama")
    inputs, labels = batch()
    kept = []
    plain = token_loss._to_gradients
    monkeypatch.setattr(token_loss, "_to_gradients", lambda *a, keep: kept.append(keep) or plain(*a, keep=keep))
    fused = TokenLoss(model)
    with torch.no_grad():
        without = float(fused(model, inputs, labels))
    assert float(fused(model, inputs, labels).detach()) == without and kept == [False, True]


def test_logits_that_are_changed_in_place_stay_whole():
    model = model_of("llama")
    inputs, labels = batch()

    def engine(**inputs):
        return SimpleNamespace(logits=model(**inputs).logits.mul_(0.5))

    fused = TokenLoss(model)
    expected = plain_loss(model(**inputs).logits * 0.5, labels)
    assert float(fused(engine, inputs, labels).detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert not fused.is_fused


@pytest.mark.parametrize("factor", [0.3, 1e-3])
def test_gradients_are_scaled_in_fp32_on_any_device(factor, monkeypatch):
    """As on a GPU: a 16-bit factor would be off by up to 0.4 %."""
    monkeypatch.setitem(token_loss._WORKED_ON_BYTES, True, 4 * 100)
    values = torch.randn(7, 93).bfloat16()
    expected = (values.float() * factor).bfloat16()
    found = values.clone()
    token_loss._scale(found, torch.tensor(factor))
    assert torch.equal(found, expected)


def test_a_forward_without_labels_returns_logits_afterwards():
    model = model_of("llama")
    inputs, labels = batch()
    before = model(**inputs).logits
    TokenLoss(model)(model, inputs, labels)
    assert torch.equal(model(**inputs).logits, before)
