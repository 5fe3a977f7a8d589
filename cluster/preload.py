"""What a zygote imports before it forks: 3 s of lazy imports that every rank would otherwise repeat.

Nothing here may start a thread or initialise CUDA.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from importlib import import_module

import numpy as np

from zerofleet.trainer.checkpoint.fragments import digest

_LATE_IMPORTS = (
    "deepspeed.runtime.zero.muon.original_muon",  # loads torch._inductor; the optimizer check would
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.module_inject.auto_ep_layer",
    "fsspec.implementations.local",
)
"""What a rank would import on its way to the first step."""


def preload(model_type: str, note: Callable[[str], None]) -> None:
    """The training loop with torch, DeepSpeed and transformers, their lazy parts, and the model's own module."""
    import_module("zerofleet.trainer.loop")
    for name in _LATE_IMPORTS:
        import_module(name)
    for dtype in (np.float32, np.uint16):  # masters and moments; values of 16 bits
        digest(np.zeros(1, dtype), 0)  # compiles the kernel: 1 s
    _import_model(model_type)
    _load_communication_op(note)
    # DeepSpeed collects garbage where it looks at memory: without this every rank would copy the pages of all that is imported here, 120 MiB.
    gc.collect()
    gc.freeze()


def _import_model(model_type: str) -> None:
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    if model_type in CONFIG_MAPPING:
        config_class = CONFIG_MAPPING[model_type]
        if config_class in AutoModelForCausalLM._model_mapping:
            _ = AutoModelForCausalLM._model_mapping[config_class]


def _load_communication_op(note: Callable[[str], None]) -> None:
    """DeepSpeed's build check takes 1 s: an op that is loaded here is loaded in every rank. None is compiled here."""
    from deepspeed.accelerator import get_accelerator

    from zerofleet.trainer.ops import COMMUNICATION_OP, clear_stale_locks, is_built, make_loadable

    make_loadable()
    if get_accelerator().device_name() != "cpu":
        return
    # DeepSpeed asks for this when it joins a process group, and runs a compiler for the answer: 0.1 s.
    _ = import_module("deepspeed.ops").__compatible_ops__
    if not is_built(COMMUNICATION_OP):
        note(f"{COMMUNICATION_OP} is not built: ranks use gloo alone. Build it with `python -m zerofleet.trainer.ops`")
        return
    for lock in clear_stale_locks():
        note(f"removed the stale build lock of {lock.op}, {lock.age_s:.0f} s old: a build was killed there")
    get_accelerator().create_op_builder("ShareMemCommBuilder").load()
