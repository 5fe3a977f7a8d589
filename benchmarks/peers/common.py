"""What all peers train, and how they say what they did: one plain DeepSpeed loop with a checkpoint after every step.

zerofleet trains the same model with the same batch (recovery.py). torch and DeepSpeed are imported when training begins,
so that whoever only measures reads the sizes without them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from json import dumps, loads
from pathlib import Path
from typing import Any

MODEL: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 4096,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
SEQUENCE_LENGTH = 128
MICRO_BATCH_SIZE = 4
WORLD_SIZE = 2
GLOBAL_BATCH_SIZE = MICRO_BATCH_SIZE * WORLD_SIZE
LEARNING_RATE = 3e-4
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
GRADIENT_CLIPPING = 1.0
KEPT_CHECKPOINTS = 2
"""Checkpoints that a peer keeps: a kill while it saves must leave it the one before."""


@dataclass(frozen=True)
class Line:
    """A rank has finished a step. `time` is Unix time in seconds at the step's end, before its checkpoint."""

    time: float
    rank: int
    pid: int
    step: int


def steps_file(folder: Path) -> Path:
    """Where the ranks of a trial write their lines."""
    return folder / "steps.jsonl"


def read_lines(folder: Path) -> list[Line]:
    """The whole lines that are there; a line that a kill cut short is left out."""
    path = steps_file(folder)
    text = path.read_text() if path.exists() else ""
    return [Line(**loads(line)) for line in text[: text.rfind("\n") + 1].splitlines()]


def train(folder: Path, load: Callable[[Any], int], save: Callable[[Any, int], None]) -> None:
    """Runs one rank until it is ended. `load(engine)` gives the number of steps done, `save(engine, step)` is called after each.

    Needs torchrun's environment variables, or a process group that is there already.
    """
    import deepspeed
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(1)
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    engine = _engine()
    rank = torch.distributed.get_rank()
    draw = torch.Generator().manual_seed(rank)
    step = load(engine)
    with steps_file(folder).open("a") as lines:
        while True:
            ids = torch.randint(MODEL["vocab_size"], (MICRO_BATCH_SIZE, SEQUENCE_LENGTH + 1), generator=draw)
            logits = engine(input_ids=ids[:, :-1]).logits
            loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
            engine.backward(loss)
            engine.step()
            step += 1
            lines.write(dumps(asdict(Line(time.time(), rank, os.getpid(), step))) + "\n")
            lines.flush()
            save(engine, step)


def _engine() -> Any:
    """Model, AdamW and DeepSpeed's engine at ZeRO-1 in fp32, with random weights."""
    import deepspeed
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    fields = {name: value for name, value in MODEL.items() if name != "model_type"}
    model = LlamaForCausalLM(LlamaConfig(**fields, use_cache=False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)
    config = {
        "train_micro_batch_size_per_gpu": MICRO_BATCH_SIZE,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": GRADIENT_CLIPPING,
        "zero_optimization": {"stage": 1},
        "steps_per_print": 2**31,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine
