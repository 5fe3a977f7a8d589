"""What a model's config says about its sizes, by closed forms: parameters, shapes, and what one layer keeps for its backward.

`tests/trainer/sizing/test_model.py` compares the parameters with transformers' models, and what layers keep with what torch saves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.errors import UserError

VOCABULARY_MULTIPLE = 64
"""Without `vocab_size`, the tokenizer's size is rounded up to this: matmuls are faster on aligned shapes."""

_GATED_DEFAULTS = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _GATED_DEFAULTS,
    "mistral": {**_GATED_DEFAULTS, "intermediate_size": 14336, "num_key_value_heads": 8},
    "qwen2": {**_GATED_DEFAULTS, "intermediate_size": 22016, "num_key_value_heads": 32},
    "qwen3": {**_GATED_DEFAULTS, "intermediate_size": 22016, "num_key_value_heads": 32, "head_dim": 128},
    "gpt2": {"n_embd": 768, "n_layer": 12, "n_positions": 1024},
    "gpt_neox": {
        "hidden_size": 6144,
        "intermediate_size": 24576,
        "num_hidden_layers": 44,
        "tie_word_embeddings": False,
    },
}
"""What transformers takes for a field that the recipe leaves out, per model type."""
_GATED = frozenset(("llama", "mistral", "qwen2", "qwen3"))
_SIZES = (
    *(
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    ),
    *("head_dim", "max_position_embeddings", "n_embd", "n_inner", "n_layer", "n_head", "n_positions"),
)
"""Fields of `model.config` that count something."""


def num_parameters(fields: Mapping[str, Any], vocabulary: int) -> int | None:
    """Parameters of the causal LM that `model.config`'s fields describe, tied weights once; None for a type that is not known here.

    `vocabulary` is the number of its embedding's rows. UserError for a size that no model has.
    """
    model_type = str(fields.get("model_type", ""))
    if model_type not in _DEFAULTS:
        return None
    for name in _SIZES:
        _size(fields, name)
    full = {**_DEFAULTS[model_type], **{key: value for key, value in fields.items() if value is not None}}
    if model_type == "gpt2":
        return _gpt2(full, vocabulary)
    if model_type == "gpt_neox":
        return _gpt_neox(full, vocabulary)
    return _gated(model_type, full, vocabulary)


def _size(fields: Mapping[str, Any], name: str) -> int | None:
    """`model.config`'s field `name`, None where it is left out. UserError when it is not a positive whole number."""
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"model.config.{name} is {value!r}: set a whole number, 1 or more, or leave it out")
    return value


def vocabulary_of(config: TrainConfig) -> int | None:
    """Rows of the embedding, as far as the recipe says: its own number, or the most that the tokenizer that it trains can have.

    UserError when its own number is not one.
    """
    named = _size(config.model.config, "vocab_size")
    if named is not None:
        return named
    if config.data.tokenizer is not None:
        return None
    return -(-config.data.tokenizer_vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def parameters_of(config: TrainConfig) -> int | None:
    """Parameters of the job's model; None when only its weights or its tokenizer can tell. UserError for a size that no model has."""
    vocabulary = vocabulary_of(config)
    return None if vocabulary is None else num_parameters(config.model.config, vocabulary)


def _gated(model_type: str, fields: Mapping[str, Any], vocabulary: int) -> int:
    """Llama and its kin: two norms, grouped-query attention and three matrices of a gated MLP per layer."""
    hidden, heads = fields["hidden_size"], fields["num_attention_heads"]
    head = fields.get("head_dim") or hidden // heads
    keys = (fields.get("num_key_value_heads") or heads) * head
    queries = heads * head
    attention = 2 * hidden * queries + 2 * hidden * keys
    if model_type == "qwen2" or (model_type in ("llama", "qwen3") and fields.get("attention_bias")):
        attention += queries + 2 * keys + (0 if model_type == "qwen2" else hidden)
    if model_type == "qwen3":
        attention += 2 * head  # norms of queries and keys
    mlp = 3 * hidden * fields["intermediate_size"]
    if model_type == "llama" and fields.get("mlp_bias"):
        mlp += 2 * fields["intermediate_size"] + hidden
    layers = fields["num_hidden_layers"] * (attention + mlp + 2 * hidden)
    embeddings = vocabulary * hidden * (1 if fields.get("tie_word_embeddings") else 2)
    return int(layers + embeddings + hidden)


def _gpt2(fields: Mapping[str, Any], vocabulary: int) -> int:
    hidden = fields.get("hidden_size", fields["n_embd"])
    inner = fields.get("n_inner") or 4 * hidden
    num_layers = fields.get("num_hidden_layers", fields["n_layer"])
    positions = fields.get("max_position_embeddings", fields["n_positions"])
    attention = 4 * hidden * hidden + 4 * hidden
    mlp = 2 * hidden * inner + inner + hidden
    embeddings = vocabulary * hidden * (1 if fields.get("tie_word_embeddings", True) else 2)
    return int(num_layers * (attention + mlp + 4 * hidden) + embeddings + positions * hidden + 2 * hidden)


def _gpt_neox(fields: Mapping[str, Any], vocabulary: int) -> int:
    hidden, inner = fields["hidden_size"], fields["intermediate_size"]
    attention = 4 * hidden * hidden + (4 * hidden if fields.get("attention_bias", True) else 0)
    mlp = 2 * hidden * inner + inner + hidden
    embeddings = vocabulary * hidden * (1 if fields.get("tie_word_embeddings") else 2)
    return int(fields["num_hidden_layers"] * (attention + mlp + 4 * hidden) + embeddings + 2 * hidden)


# -- shapes ---------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ModelSizes:
    """What memory, time and bytes that travel depend on."""

    parameters: int
    """All of them, tied weights once."""
    matmul_parameters: int
    """Those that every token is multiplied with: without the input embedding, unless it is tied (Chowdhery et al. 2022, PaLM)."""
    num_layers: int
    hidden: int
    """Width of the residual stream."""
    attention_width: int
    """Heads times their size."""
    heads: int
    """Of queries."""
    key_width: int
    """Heads of keys times their size; as wide as queries but for grouped-query attention."""
    vocabulary: int
    """Rows of the embedding."""
    largest_parameter: int
    """Elements of the largest tensor."""
    layer_parameters: int
    """Elements of one layer."""
    kept_elements: int
    """What a layer keeps for its backward, per token, in the dtype of the weights."""
    kept_fp32_elements: int
    """What it keeps in fp32 whatever that dtype: norms are computed so."""
    kept_elements_per_pair: int = 0
    """What it keeps for each pair of tokens of a sequence, in fp32: attention that is not computed in one kernel."""
    working_elements: int = 0
    """The widest tensors of a layer's own backward, per token."""
    returns_plain_logits: bool = True
    """Logits are the product with the output embedding: neither scaled, nor capped, nor with a bias."""

    @property
    def ties_embeddings(self) -> bool:
        """Whether the input embedding is the output's, too."""
        return self.parameters - self.matmul_parameters < self.vocabulary * self.hidden

    def flops_per_token(self, sequence_length: int) -> int:
        """Training FLOPs per token, forward and backward: 6 N + 12 L H Q T (Chowdhery et al. 2022, PaLM, appendix B)."""
        return 6 * self.matmul_parameters + 12 * self.num_layers * self.attention_width * sequence_length


def sizes_of(fields: Mapping[str, Any], vocabulary: int) -> ModelSizes | None:
    """Sizes of the causal LM that `model.config`'s fields describe; None for a type that is not known here. UserError for a size that
    no model has."""
    parameters = num_parameters(fields, vocabulary)
    if parameters is None:
        return None
    model_type = str(fields["model_type"])
    full = {**_DEFAULTS[model_type], **{key: value for key, value in fields.items() if value is not None}}
    shape = _Shape.of(model_type, full)
    embedding = vocabulary * shape.hidden
    is_tied = bool(full.get("tie_word_embeddings", model_type == "gpt2"))
    positions = full.get("max_position_embeddings", full["n_positions"]) if model_type == "gpt2" else 0
    last_norm = shape.hidden * (1 if model_type in _GATED else 2)
    outside = embedding * (1 if is_tied else 2) + positions * shape.hidden + last_norm
    fused = 3 * shape.hidden if model_type not in _GATED else shape.heads * shape.head
    kept, kept_fp32, per_pair = _kept(model_type, full, shape)
    return ModelSizes(
        parameters=parameters,
        matmul_parameters=parameters - (0 if is_tied else embedding),
        num_layers=shape.num_layers,
        hidden=shape.hidden,
        attention_width=shape.heads * shape.head,
        heads=shape.heads,
        key_width=shape.kv_heads * shape.head,
        vocabulary=vocabulary,
        largest_parameter=max(embedding, shape.hidden * max(shape.inner, fused, positions)),
        layer_parameters=(parameters - outside) // shape.num_layers,
        kept_elements=kept,
        kept_fp32_elements=kept_fp32,
        kept_elements_per_pair=per_pair,
        working_elements=3 * shape.inner,
    )


@dataclass(frozen=True)
class _Shape:
    hidden: int
    inner: int
    num_layers: int
    heads: int
    kv_heads: int
    head: int

    @staticmethod
    def of(model_type: str, full: Mapping[str, Any]) -> _Shape:
        if model_type == "gpt2":
            hidden = full.get("hidden_size", full["n_embd"])
            heads = full.get("num_attention_heads", full.get("n_head", 12))
            layers = full.get("num_hidden_layers", full["n_layer"])
            return _Shape(hidden, full.get("n_inner") or 4 * hidden, layers, heads, heads, hidden // heads)
        hidden, heads = full["hidden_size"], full.get("num_attention_heads", 64)
        head = full.get("head_dim") or hidden // heads
        kv_heads = full.get("num_key_value_heads") or heads
        return _Shape(hidden, full["intermediate_size"], full["num_hidden_layers"], heads, kv_heads, head)


def _kept(model_type: str, full: Mapping[str, Any], shape: _Shape) -> tuple[int, int, int]:
    """Per token and layer: elements in the weights' dtype and in fp32; per pair of tokens: elements.

    Read off transformers' modules: what each operation saves for its backward, every tensor once.
    """
    hidden, inner, queries, keys = shape.hidden, shape.inner, shape.heads * shape.head, shape.kv_heads * shape.head
    if model_type == "gpt2":
        return _kept_gpt2(full, shape)
    if (
        model_type == "gpt_neox"
    ):  # input of both norms, their outputs; queries, keys, all of qkv (values are a view), output twice
        return 3 * hidden + 7 * hidden + 2 * inner, 0, 0
    # Two norms: the input in fp32, normed, scaled. Queries, keys, values, output. Gate, its activation, up, their product.
    low, wide = 4 * hidden + 2 * queries + 2 * keys + 4 * inner, 2 * hidden
    if model_type == "qwen3":  # norms of queries and keys
        low, wide = low + queries + keys, wide + queries + keys
    return low, wide, 0


def _kept_gpt2(full: Mapping[str, Any], shape: _Shape) -> tuple[int, int, int]:
    """Dropout keeps its noise; dropped attention is not computed in one kernel, and keeps its scores."""
    hidden, inner = shape.hidden, shape.inner
    norms, attention, activation = 4 * hidden, 4 * hidden, 5 * inner
    dropped = 2 * hidden if full.get("resid_pdrop", 0.1) else 0
    if full.get("attn_pdrop", 0.1):
        return norms + attention + 2 * hidden + dropped + activation, 0, 3 * shape.heads  # scaled queries and keys too
    return norms + attention + dropped + activation, 0, 0
