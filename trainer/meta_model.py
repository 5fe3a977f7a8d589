"""A model's sizes counted on meta tensors: any causal LM of transformers, of any size, in seconds and without its memory."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from zerofleet.trainer.config import ModelConfig, Precision
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.model import DTYPES, layers_of, resolve_config, shape_of
from zerofleet.trainer.sizing.model import ModelSizes
from zerofleet.trainer.token_loss import head_of, returns_what_its_head_returns

_ATTENTION = "zerofleet_kept"
_PROBE_TOKENS = 128


def measure(model: ModelConfig, vocabulary: int | None, precision: Precision, sequence_length: int) -> ModelSizes:
    """Sizes of the job's model. `vocabulary` are the rows of its embedding, where its config does not say them itself.

    UserError for a model that transformers does not know, has no causal language model of, or cannot build.
    """
    resolved = resolve_config(model, vocabulary or 0)
    if type(resolved) not in AutoModelForCausalLM._model_mapping:
        raise UserError(
            f"{type(resolved).__name__} has no causal language model in transformers: choose another model_type"
        )
    AttentionInterface.register(_ATTENTION, _attend)
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(resolved, attn_implementation=_ATTENTION).to(DTYPES[precision])
    built.tie_weights()
    return _sizes(built, resolved, min(sequence_length, _PROBE_TOKENS))


def _sizes(built: PreTrainedModel, resolved: PretrainedConfig, tokens: int) -> ModelSizes:
    text, shape = resolved.get_text_config(), shape_of(built)
    layers = layers_of(built)
    inner = max(
        (p.numel() // text.hidden_size for p in layers[0].parameters() if p.dim() == 2), default=4 * text.hidden_size
    )
    kept = _kept_by(built, tokens)
    if kept is None:  # a rule for what cannot be traced: as a Llama's layer keeps
        kept = (8 * text.hidden_size + 4 * inner, 2 * text.hidden_size)
    else:
        kept = (kept[0] // shape.num_layers, kept[1] // shape.num_layers)
    return ModelSizes(
        parameters=shape.num_parameters,
        matmul_parameters=shape.num_matmul_parameters,
        num_layers=shape.num_layers,
        hidden=text.hidden_size,
        attention_width=shape.num_heads * shape.head_size,
        heads=shape.num_heads,
        key_width=(getattr(text, "num_key_value_heads", None) or shape.num_heads) * shape.head_size,
        vocabulary=text.vocab_size,
        largest_parameter=max(parameter.numel() for parameter in built.parameters()),
        layer_parameters=max(sum(p.numel() for p in layer.parameters()) for layer in layers),
        kept_elements=kept[0],
        kept_fp32_elements=kept[1],
        working_elements=3 * inner,
        returns_plain_logits=_returns_plain_logits(built),
    )


def _returns_plain_logits(built: PreTrainedModel) -> bool:
    head = head_of(built)
    ids = torch.zeros(1, 8, dtype=torch.long, device="meta")
    return head is not None and returns_what_its_head_returns(head, built, {"input_ids": ids})


class _Attention(torch.autograd.Function):
    """Keeps what one fused kernel keeps: queries, keys, values and its output."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        batch, heads, length, _ = query.shape
        out = query.new_empty(batch, length, heads, value.shape[-1])
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise AssertionError("nothing is trained on meta tensors")


def _attend(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    out: torch.Tensor = _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return out, None


def _kept_by(built: PreTrainedModel, tokens: int) -> tuple[int, int] | None:
    """Elements per token that the forward keeps, all layers together: in the weights' dtype and in wider ones. None when the model
    looks at values, which meta tensors do not have (routing of experts)."""
    built.train()
    built.config.use_cache = False
    dtype = next(built.parameters()).dtype
    own = {parameter.untyped_storage()._cdata for parameter in built.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            built(input_ids=ids)
    except (RuntimeError, NotImplementedError, IndexError, TypeError, ValueError):
        return None
    low, wide = 0, 0
    for storage, tensor in kept.items():
        if storage in own:
            continue
        elements = tensor.untyped_storage().nbytes() // tensor.element_size()
        low, wide = (low + elements, wide) if tensor.dtype == dtype else (low, wide + elements)
    return low // tokens, wide // tokens
