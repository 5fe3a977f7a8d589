"""What a zygote imports before it forks: 3 s of lazy imports that every rank would otherwise repeat.

Nothing here may start a thread or initialise CUDA.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module


def preload(model_type: str, note: Callable[[str], None]) -> None:
    """The training loop with torch, DeepSpeed and transformers, their lazy parts, and the model's own module."""
    import_module("zerofleet.trainer.loop")
    import_module("deepspeed.runtime.zero.muon.original_muon")  # loads torch._inductor; the optimizer check would
    _import_model(model_type)
    _load_communication_op(note)


def _import_model(model_type: str) -> None:
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    if model_type in CONFIG_MAPPING:
        config_class = CONFIG_MAPPING[model_type]
        if config_class in AutoModelForCausalLM._model_mapping:
            _ = AutoModelForCausalLM._model_mapping[config_class]


def _load_communication_op(note: Callable[[str], None]) -> None:
    """DeepSpeed's build check takes 1 s, a build 100 s; an op that is loaded here is loaded in every rank."""
    from deepspeed.accelerator import get_accelerator

    from zerofleet.trainer.ops import (
        COMMUNICATION_OP,
        OpBuildError,
        build,
        clear_stale_locks,
        is_built,
        make_loadable,
        missing_tools,
    )

    make_loadable()
    if get_accelerator().device_name() != "cpu":
        return
    for lock in clear_stale_locks():
        note(f"removed the stale build lock of {lock.op}, {lock.age_s:.0f} s old: a build was killed there")
    if not is_built(COMMUNICATION_OP) and not missing_tools():
        note(f"building {COMMUNICATION_OP}: once, about 100 s")
        try:
            build((COMMUNICATION_OP,))
        except OpBuildError as error:
            note(f"ranks use gloo alone: {error}")
    if is_built(COMMUNICATION_OP):
        get_accelerator().create_op_builder("ShareMemCommBuilder").load()
