"""Models and setups for the tests of sizes."""

from __future__ import annotations

from hypothesis import strategies as st

from zerofleet.trainer.sizing.model import ModelSizes, sizes_of
from zerofleet.trainer.sizing.node import Node
from zerofleet.trainer.sizing.setup import Setup

GIB = 2**30


def llama(layers: int = 8, hidden: int = 1024, vocabulary: int = 32000) -> ModelSizes:
    fields = {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
    }
    sizes = sizes_of(fields, vocabulary)
    assert sizes is not None
    return sizes


def setup(**changes) -> Setup:
    fields = {
        "zero_stage": 1,
        "precision": "bf16",
        "micro_batch_size": 2,
        "sequence_length": 512,
        "global_batch_size": 64,
        "nodes": 2,
        "ranks_per_node": 4,
        "on_gpu": True,
    }
    return Setup(**{**fields, **changes})


GPU_NODE = Node("gpus", 96, 1800 * GIB, 900 * GIB, 8, 80 * GIB)
CPU_NODE = Node("cores", 16, 64 * GIB, 32 * GIB)

models = st.builds(
    llama,
    layers=st.integers(1, 80),
    hidden=st.sampled_from([256, 1024, 4096, 8192]),
    vocabulary=st.sampled_from([1024, 32000, 128256]),
)
setups = st.builds(
    setup,
    zero_stage=st.integers(0, 3),
    precision=st.sampled_from(["bf16", "fp16", "fp32"]),
    micro_batch_size=st.sampled_from([1, 2, 4, 8]),
    sequence_length=st.sampled_from([128, 1024, 4096]),
    global_batch_size=st.sampled_from([8, 64, 512]),
    nodes=st.integers(1, 16),
    ranks_per_node=st.integers(1, 8),
    on_gpu=st.booleans(),
    activation_checkpointing=st.booleans(),
    reduce_bucket=st.sampled_from([5_000_000, 500_000_000]),
)
