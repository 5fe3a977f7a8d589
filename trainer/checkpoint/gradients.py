"""The gradient of each master weight, between the backward pass that ends a step and the optimizer's step: summed over micro-steps, averaged over
ranks, before norm and clipping. Private attributes of DeepSpeed, as in adapters.py; the same test watches over them.

Not with an offloaded optimizer, whose norm DeepSpeed takes while backward runs: what is added here would be clipped by a norm without it. Not
in fp16, whose gradients are multiplied by a loss scale that changes within the step, nor in bf16 at stage 0, where a gradient has 8 bits, and at stage 1,
where every rank takes the norm of its own copy of all gradients: each would clip by another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

from zerofleet.trainer.checkpoint.adapters import Slot


def add_to_gradients(engine: Any, slots: Mapping[str, Slot], terms: Mapping[str, torch.Tensor]) -> None:
    """Adds to the gradient of each parameter in `terms` its term, of as many elements as its slot of master weights has."""
    parameters = dict(engine.module.named_parameters())
    for name, term in terms.items():
        gradient = _gradient(engine.optimizer, parameters[name], slots[name])
        gradient.add_(term.to(device=gradient.device, dtype=gradient.dtype))


def _gradient(optimizer: Any, parameter: Any, slot: Slot) -> torch.Tensor:
    """Of the slot's elements, to be written to."""
    assert not isinstance(optimizer, BF16_Optimizer)
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        partition, _ = optimizer._get_fp32_grad_state_partition(parameter, release_swap_buffers=False)
        return partition.view(-1)[: slot.view.numel()]  # type: ignore[no-any-return]
    if (mapping := getattr(parameter, "_hp_mapping", None)) is None:
        return parameter.grad.view(-1)  # type: ignore[no-any-return]
    return mapping.get_lp_grad_fragment(parameter._index_in_param_group).view(-1)  # type: ignore[no-any-return]
