"""Learning rate as a function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from zerofleet.trainer.config import TrainSection


def learning_rate(train: TrainSection, step: int) -> float:
    """Learning rate of step `step` (0 to steps - 1).

    Linear warmup to the peak, then cosine (Loshchilov and Hutter 2017, SGDR, without restarts), linear, constant, or
    WSD: warmup, stable, linear decay (Hu et al. 2024, MiniCPM).
    """
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / train.warmup_steps
    floor = train.min_learning_rate_ratio
    after_warmup = max(1, train.steps - train.warmup_steps)
    progress = min(1.0, (step - train.warmup_steps) / after_warmup)
    if train.schedule == "cosine":
        ratio = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    elif train.schedule == "linear":
        ratio = 1 - (1 - floor) * progress
    elif train.schedule == "wsd" and train.decay_steps:
        decayed = max(0, step - (train.steps - train.decay_steps)) / train.decay_steps
        ratio = 1 - (1 - floor) * decayed
    else:
        ratio = 1.0
    return train.learning_rate * ratio
