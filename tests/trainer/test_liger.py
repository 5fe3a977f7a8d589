"""Liger's kernels: what is asked of the package, and what is said where it is absent or has nothing for a model. The kernels themselves need a GPU."""

from __future__ import annotations

import importlib.util
import sys

import pytest
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations import liger as integration

from zerofleet.trainer.errors import UserError
from zerofleet.trainer.liger import check_liger, use_liger_kernels
from zerofleet.trainer.token_loss import TokenLoss

pytestmark = pytest.mark.timeout(60)
PACKAGE = """
import types

asked = []

def _apply_liger_kernel_to_instance(model, **kernels):
    asked.append(kernels)
    if model.config.model_type != "llama":
        return
    for layer in model.model.layers:
        layer.mlp.forward = types.MethodType(lambda mlp, hidden: hidden, layer.mlp)
"""
SMALL = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture
def liger(tmp_path, monkeypatch):
    """A package with the real one's entry, as transformers calls it."""
    (tmp_path / "liger_kernel/transformers").mkdir(parents=True)
    (tmp_path / "liger_kernel/__init__.py").touch()
    (tmp_path / "liger_kernel/transformers/__init__.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(integration, "is_liger_kernel_available", lambda: True)
    import liger_kernel.transformers

    yield liger_kernel.transformers
    for name in ("liger_kernel", "liger_kernel.transformers"):
        del sys.modules[name]


def model_of(model_type, **fields):
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**SMALL, **fields}, use_cache=False))


def test_a_model_has_its_kernels_and_our_loss(liger):
    model = model_of("llama")
    names = list(model.state_dict())
    use_liger_kernels(model, on_gpu=True)
    assert liger.asked == [{"cross_entropy": False, "fused_linear_cross_entropy": False}]
    assert all("forward" in vars(layer.mlp) for layer in model.model.layers)
    assert list(model.state_dict()) == names
    assert TokenLoss(model).is_fused


def test_a_model_that_liger_does_not_know_is_refused(liger):
    with pytest.raises(UserError, match="no kernels for GPT2LMHeadModel"):
        use_liger_kernels(model_of("gpt2", n_embd=32, n_layer=1, n_head=2, activation_function="silu"), on_gpu=True)


def test_kernels_run_on_gpus_only(liger):
    with pytest.raises(UserError, match="run on GPUs only"):
        use_liger_kernels(model_of("llama"), on_gpu=False)
    assert liger.asked == []


@pytest.mark.parametrize(
    ("model_type", "fields", "says"),
    [
        ("llama", {}, ""),
        ("llama", {"hidden_act": "swish"}, ""),
        ("llama", {"hidden_act": "gelu"}, "activation is gelu, where Liger's kernels of llama have silu"),
        ("gemma2", {}, ""),
        (
            "gemma2",
            {"hidden_activation": "gelu"},
            "activation is gelu, where Liger's kernels of gemma2 have gelu_pytorch_tanh",
        ),
    ],
)
def test_another_activation_than_the_kernels_is_refused(liger, model_type, fields, says):
    config = AutoConfig.for_model(model_type, **{**SMALL, **fields})
    if not says:
        check_liger(config)
        return
    with pytest.raises(UserError, match=says):
        check_liger(config)
    assert liger.asked == []


def test_the_package_is_asked_for_where_it_is_absent(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install zerofleet\[liger\]"):
        check_liger(AutoConfig.for_model("llama", **SMALL))
