"""Closed-form counts, before anything is built: parameters of a model, bytes of its training state, checkpoint and snapshots.

Light: no torch. `tests/trainer/test_sizing.py` compares the parameters with transformers' models, `tests/integration` the bytes
with a real checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zerofleet.trainer.checkpoint.buffers import DESCRIPTION_ROOM_BYTES, Buffers
from zerofleet.trainer.config import Precision, TrainConfig
from zerofleet.trainer.errors import UserError

CHECKPOINT_BYTES_PER_PARAMETER = 12
"""fp32 master weight and AdamW's two moments: what fragments hold, whatever the stage and precision."""
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


@dataclass(frozen=True)
class StateSizes:
    """Bytes of a training state on `nodes` equal nodes."""

    parameters: int
    zero_stage: int
    precision: Precision
    nodes: int
    ranks_per_node: int

    @property
    def checkpoint_bytes(self) -> int:
        """Of a checkpoint in storage, without its headers."""
        return CHECKPOINT_BYTES_PER_PARAMETER * self.parameters

    @property
    def snapshot_bytes(self) -> int:
        """Of one step's snapshots on one node: every rank keeps its part of the state, at every stage."""
        return -(-self.checkpoint_bytes // self.nodes)

    @property
    def rank_bytes(self) -> int:
        """Weights, gradients and optimizer states of one rank, without activations (Rajbhandari et al. 2020, ZeRO, section 3)."""
        low, world = (4 if self.precision == "fp32" else 2), self.nodes * self.ranks_per_node
        masters = 0 if self.precision == "fp32" else 4
        gradient = low if self.zero_stage == 0 else 4
        weights = low / (world if self.zero_stage == 3 else 1)
        gradients = gradient / (world if self.zero_stage >= 2 else 1)
        optimizer = (masters + 8) / (world if self.zero_stage >= 1 else 1)
        return int(self.parameters * (weights + gradients + optimizer))

    def buffer_bytes(self, buffers: Buffers) -> int:
        """What `buffers` take of a node's /dev/shm."""
        rooms = DESCRIPTION_ROOM_BYTES * self.ranks_per_node
        return (buffers.own + buffers.replicas) * (self.snapshot_bytes + rooms)
