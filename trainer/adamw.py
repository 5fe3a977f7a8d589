"""AdamW whose moments are bf16: 4 bytes per parameter in place of 8, and no temporaries of the size of what is updated.

The update is computed in fp32, a chunk at a time that stays in the cache, and rounded to the nearest when it is stored. bf16 has 8 bits: a
change of less than a 512th of the value is lost, so the second moment follows its gradients only while a step may move it by more (lint.py
bounds the second beta). Masters stay fp32: there a lost change would be a lost step (Micikevicius et al. 2018, section 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

CHUNK_ELEMENTS = 2**18
"""1 MiB in fp32: the five that a chunk needs lie in a core's cache."""


class Bf16MomentsAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019, algorithm 2), as torch.optim.AdamW computes it, of contiguous fp32 parameters. State per parameter:
    `step` (fp32 scalar, as torch keeps it), `exp_avg` and `exp_avg_sq` (bf16)."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad.reshape(-1), group)  # at stage 0 of any strides

    def _update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            moments = {name: torch.zeros_like(parameter, dtype=torch.bfloat16) for name in ("exp_avg", "exp_avg_sq")}
            state.update(step=torch.zeros(()), **moments)
        state["step"] += 1
        flat = [each.view(-1) for each in (parameter.data, gradient, state["exp_avg"], state["exp_avg_sq"])]
        for weights, slopes, first, second in zip(*(each.split(CHUNK_ELEMENTS) for each in flat), strict=True):
            _update_chunk(weights, slopes, first, second, int(state["step"]), group)


def _update_chunk(
    weights: torch.Tensor,
    gradient: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    step: int,
    group: dict[str, Any],
) -> None:
    (beta1, beta2), rate = group["betas"], group["lr"]
    first = exp_avg.float().lerp_(gradient, 1 - beta1)
    second = exp_avg_sq.float().mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    exp_avg.copy_(first)
    exp_avg_sq.copy_(second)
    weights.mul_(1 - rate * group["weight_decay"])
    scale = second.sqrt_().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
    weights.addcdiv_(first, scale, value=-rate / (1 - beta1**step))
