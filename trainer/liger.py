"""Liger Kernel's Triton kernels in the place of a model's own norms, rotary embeddings and gated MLPs (Hsu et al. 2024, arXiv:2410.10989).

The loss stays ours (`trainer/token_loss.py`), which is fused in the same way. Names of weights stay as they are, so that a checkpoint is loaded with and without.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from zerofleet.trainer.errors import UserError

_PACKAGE = "liger_kernel"


def check_liger() -> None:
    """Raises UserError where the package is not installed."""
    if importlib.util.find_spec(_PACKAGE) is None:
        raise UserError(
            "model.liger_kernels=true, and liger-kernel is not installed: `pip install zerofleet[liger]` on every node, or set it to false"
        )


def use_liger_kernels(model: Any) -> None:
    """Patches a transformers model in place. Raises UserError where Liger has nothing for it, which Liger itself only logs."""
    check_liger()
    from transformers.integrations.liger import apply_liger_kernel

    apply_liger_kernel(model, {"cross_entropy": False, "fused_linear_cross_entropy": False})
    if not any("forward" in vars(module) for module in model.modules()):
        raise UserError(
            f"model.liger_kernels=true, and liger-kernel has no kernels for {type(model).__name__}: set it to false"
        )
