"""A forward that is told that each row is one sequence: the same bits, and nothing that the host waits for."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from zerofleet.trainer.row_sequences import one_sequence_per_row
from zerofleet.trainer.token_loss import TokenLoss

pytestmark = pytest.mark.timeout(60)
SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
}
MODELS = {
    "llama": SMALL,
    "mistral": {**SMALL, "sliding_window": 4},
    "gemma3_text": {**SMALL, "sliding_window": 4},
    "qwen3": SMALL,
    "gpt2": {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
}


class HostWaits(TorchDispatchMode):
    """Counts values that the host asks the device for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func._schema.name == "aten::_local_scalar_dense"
        return func(*args, **(kwargs or {}))


def model_of(model_type, attention):
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **MODELS[model_type], use_cache=False)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", MODELS)
def test_the_host_waits_for_nothing_and_no_bit_changes(model_type, attention):
    model = model_of(model_type, attention)
    ids = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        with HostWaits() as asked:
            plain = model(input_ids=ids).logits
        with HostWaits() as told, one_sequence_per_row():
            logits = model(input_ids=ids).logits
        with HostWaits() as asked_again:
            model(input_ids=ids)
    assert asked.count == asked_again.count >= 1, "transformers no longer asks: row_sequences.py has nothing left to do"
    assert told.count == 0
    assert torch.equal(plain, logits)


def test_rows_of_several_sequences_are_still_found():
    model = model_of("llama", "sdpa")
    ids = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(6).repeat(2).expand(2, -1)
    fused = TokenLoss(model)
    with torch.no_grad():
        whole, apart = (
            fused(model, inputs, ids) for inputs in ({"input_ids": ids}, {"input_ids": ids, "position_ids": positions})
        )
        halves = sum(
            fused(model, {"input_ids": half}, labels)
            for half, labels in zip(ids.split(6, 1), ids.split(6, 1), strict=True)
        )
    assert apart == pytest.approx(float(halves), rel=1e-5)
    assert abs(float(whole - apart)) > 1e-4 * float(whole)
