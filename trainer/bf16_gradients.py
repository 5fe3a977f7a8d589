"""ZeRO-1 in bf16: the gradients of DeepSpeed's optimizer for it (BF16_Optimizer) with less memory and fewer passes over it, and the same bits
with two ranks; with more, a group of small tensors may be summed in another order than beside the large one.

That optimizer holds a rank's gradients in fp32, in a flat buffer per parameter group. As it comes, it zeroes the buffers after every step, widens each
16-bit gradient into a tensor of its own to add it, copies the buffers into one more flat tensor and back to sum them over ranks, and clips all of them
though a rank updates only its part. Here the first micro-step's gradients are written into the buffers, later ones added in pieces that stay in a
core's cache, sums are made where they lie, and what is clipped is the rank's part. 16-bit gradients go as soon as they are added (a setting
of DeepSpeed's, `engine.py`).

What is replaced is no public API: `tests/trainer/test_bf16_gradients.py` trains with and without, and fails when an upgrade stops calling it.
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer

from zerofleet.trainer.host_collectives import average

PIECE_ELEMENTS = 2**18
"""Of gradients that are widened at a time: a megabyte."""


def spare_copies(optimizer: Any) -> None:
    """Puts this module's ways in place of a BF16_Optimizer's own; other optimizers are left as they are."""
    if isinstance(optimizer, BF16_Optimizer):
        gradients = Gradients(optimizer)
        optimizer._update_hp_grad = gradients.add
        optimizer.clear_hp_grads = gradients.forget
        optimizer.reduce_gradients = (
            gradients.average
        )  # which the engine calls at stage 1 in place of its own, where there is one
        plain = optimizer.get_grads_for_norm
        optimizer.get_grads_for_norm = lambda for_clipping=False: gradients.mine() if for_clipping else plain()


class Gradients:
    """Of all parameters on this rank. What a buffer holds counts only where the optimizer's `fp32_groups_has_gradients` says so."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    def add(self, parameter: torch.nn.Parameter, group: int, index: int, clear_lp_grads: bool) -> None:
        """The parameter's 16-bit gradient, to what this step's micro-steps have added so far."""
        if parameter.grad is None:
            return
        assert not clear_lp_grads, "nothing asks for it"
        total, term = self._optimizer.fp32_groups_gradients[group][index], parameter.grad.reshape(-1)
        has_gradients = self._optimizer.fp32_groups_has_gradients[group]
        if has_gradients[index]:
            size = PIECE_ELEMENTS if total.device.type == "cpu" else max(1, total.numel())  # no kernel per piece
            for place, piece in zip(torch.split(total, size), torch.split(term, size), strict=True):
                place.add_(piece)
        else:
            total.copy_(term)
            has_gradients[index] = True
        parameter._hp_grad = total  # type: ignore[attr-defined]

    def forget(self) -> None:
        """All of them; what the buffers hold stays until it is written over."""
        for has_gradients in self._optimizer.fp32_groups_has_gradients:
            has_gradients[:] = [False] * len(has_gradients)

    def average(self, pipeline_parallel: bool = False) -> None:
        """Over the ranks. Collective."""
        for totals, known in zip(
            self._optimizer.fp32_groups_gradients, self._optimizer.fp32_groups_has_gradients, strict=True
        ):
            for total, is_known in zip(totals, known, strict=True):
                if not is_known:
                    total.zero_()
            known[:] = [True] * len(known)  # other ranks may have a gradient: all take the norm of the same
        for flat in self._optimizer.fp32_groups_gradients_flat:
            average(flat, self._optimizer.dp_process_group)

    def mine(self) -> list[torch.Tensor]:
        """The part of each group that this rank updates."""
        parts: list[torch.Tensor] = self._optimizer.fp32_groups_gradient_flat_partition
        return parts
