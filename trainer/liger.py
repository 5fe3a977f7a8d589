"""Liger Kernel's Triton kernels in the place of a model's own norms, rotary embeddings and gated MLPs (Hsu et al. 2024, arXiv:2410.10989).

The loss stays ours (`trainer/token_loss.py`), which is fused in the same way. Names of weights stay as they are, so that a checkpoint is loaded with and without.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from zerofleet.trainer.errors import UserError

_PACKAGE = "liger_kernel"
_SILU, _GELU = ("silu", "swish"), ("gelu_pytorch_tanh",)
"""Activations of Liger's gated MLPs, by transformers' names."""


def check_liger(config: Any) -> None:
    """Raises UserError where the package is not installed, or where the activation of a model (its transformers config) is not the one that Liger's kernels have: of a model
    that exists already Liger changes it without a word."""
    if importlib.util.find_spec(_PACKAGE) is None:
        raise UserError(
            "model.liger_kernels=true, and liger-kernel is not installed: `pip install zerofleet[liger]` on every node, or set it to false"
        )
    text = config.get_text_config()
    activation = getattr(text, "hidden_activation", None) or getattr(text, "hidden_act", None)
    kernels = _GELU if text.model_type.startswith("gemma") else _SILU
    if activation is not None and activation not in kernels:
        raise UserError(
            f"model.liger_kernels=true, and the model's activation is {activation}, where Liger's kernels of {text.model_type} have {kernels[0]}: set it to false"
        )


def use_liger_kernels(model: Any, on_gpu: bool) -> None:
    """Patches a transformers model in place. Raises UserError where Liger has nothing for it, which Liger itself only logs, and on CPUs."""
    if not on_gpu:
        raise UserError("model.liger_kernels=true, and Liger's kernels run on GPUs only: set it to false")
    check_liger(model.config)
    from transformers.integrations.liger import apply_liger_kernel

    apply_liger_kernel(model, {"cross_entropy": False, "fused_linear_cross_entropy": False})
    if not any("forward" in vars(module) for module in model.modules()):
        raise UserError(
            f"model.liger_kernels=true, and liger-kernel has no kernels for {type(model).__name__}: set it to false"
        )
