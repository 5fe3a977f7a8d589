"""What all systems train: a model's fp32 weights, sequences in zerofleet's own order, and one set of hyperparameters.

A task is a folder, so that processes of any origin can read it: `model/` (config.json, safetensors), `input_ids.npy` and `labels.npy` (int64,
[sequences, tokens]; labels are the next tokens already). Sequences lie in the order in which steps take them, block by block: of each step's
blocks of `micro_batch_size` the ranks take one in turn.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

WORLD_SIZE = 2
ZERO_STAGE = 1
LEARNING_RATE = 3e-4
BETAS = (0.9, 0.95)
EPS = 1e-8
WEIGHT_DECAY = 0.1
"""On matrices; biases and norms have none."""
GRADIENT_CLIPPING = 1.0


@dataclass(frozen=True)
class Task:
    """What is trained."""

    folder: str
    global_batch_size: int
    micro_batch_size: int
    steps: int
    """That there are sequences for."""
    attention: str
    """As transformers names it, of all systems."""
    is_compiled: bool
    """By torch.compile, in each system's documented way."""

    @staticmethod
    def of(text: str) -> Task:
        return Task(**json.loads(text))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def accumulation(self) -> int:
        """Micro-steps of a rank in a step."""
        return self.global_batch_size // (self.micro_batch_size * WORLD_SIZE)

    def sequences(self) -> Sequences:
        return Sequences(Path(self.folder))

    def blocks_of(self, rank: int) -> list[range]:
        """The sequences of each of the rank's micro-steps."""
        size = self.micro_batch_size
        blocks = range(self.steps * self.global_batch_size // size)
        return [range(block * size, (block + 1) * size) for block in blocks[rank::WORLD_SIZE]]

    def batches(self, rank: int) -> Any:
        """torch's own loader over the rank's blocks."""
        from torch.utils.data import DataLoader

        return DataLoader(self.sequences(), batch_sampler=self.blocks_of(rank))  # type: ignore[arg-type]

    def model(self) -> Any:
        """The model with its initial weights in fp32, in training mode."""
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(
            Path(self.folder, "model"), dtype=torch.float32, attn_implementation=self.attention
        )
        model.config.use_cache = False
        return model.train()

    def optimizer(self, model: Any) -> torch.optim.Optimizer:
        """torch's fused AdamW, which its documentation calls the fastest."""
        import torch

        from zerofleet.trainer.engine import parameter_groups

        groups = parameter_groups(model, WEIGHT_DECAY)
        return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPS, fused=True)

    def deepspeed_config(self) -> dict[str, Any]:
        """DeepSpeed's own defaults but for what the task says: gradients are added and sent in bf16, which is less than zerofleet sends."""
        return {
            "train_micro_batch_size_per_gpu": self.micro_batch_size,
            "gradient_accumulation_steps": self.accumulation,
            "gradient_clipping": GRADIENT_CLIPPING,
            "zero_optimization": {"stage": ZERO_STAGE},
            "bf16": {"enabled": True},
            "steps_per_print": 2**31,
        }


class Sequences:
    """A map-style data set of what a causal language model of transformers is called with."""

    def __init__(self, folder: Path) -> None:
        self._input_ids = np.load(folder / "input_ids.npy", mmap_mode="r")
        self._labels = np.load(folder / "labels.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self._input_ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        import torch

        labels = torch.from_numpy(self._labels[index].copy())
        # Both: transformers takes `labels` for a wish to have a loss, and `shift_labels` for what not to shift any more.
        return {
            "input_ids": torch.from_numpy(self._input_ids[index].copy()),
            "labels": labels,
            "shift_labels": labels,
        }
