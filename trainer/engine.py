"""Builds the DeepSpeed engine: the config that zerofleet owns, and the optimizer."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from transformers import PretrainedConfig, PreTrainedModel
from transformers.integrations import HfDeepSpeedConfig

from zerofleet.trainer.adamw import Bf16MomentsAdamW
from zerofleet.trainer.allocator import give_freed_memory_back, keep_freed_memory
from zerofleet.trainer.batch import BatchPlan
from zerofleet.trainer.bf16_gradients import spare_copies
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.document_mask import check_document_mask
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.host_collectives import open_collectives, serve_deepspeed
from zerofleet.trainer.model import ModelShape, build_model, layers_of, shape_of
from zerofleet.trainer.ops import make_loadable
from zerofleet.trainer.sizing.setup import CPU_REDUCE_BUCKET_ELEMENTS
from zerofleet.trainer.token_loss import TokenLoss
from zerofleet.trainer.world import World

COLLECTIVE_TIMEOUT = timedelta(hours=24)
"""Far above any phase: the heartbeat decides that a rank hangs, never a collective."""

FP16_DEFAULTS = {"initial_scale_power": 16, "loss_scale_window": 1000, "hysteresis": 2, "min_loss_scale": 1}
"""DeepSpeed's own defaults, written out: without them its stage 0 starts from other values than its other stages."""


@dataclass
class Engine:
    """A DeepSpeed engine with what the loop needs to know about it."""

    engine: Any
    model: PreTrainedModel
    shape: ModelShape
    device: torch.device
    loss: TokenLoss
    is_compiled: bool
    _keep: HfDeepSpeedConfig | None
    """transformers holds only a weak reference to it; without it `from_pretrained` would load whole models under ZeRO-3."""

    def token_loss(self, inputs: Mapping[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """Nats summed over real tokens, with or without gradients (`TokenLoss`)."""
        if not self.loss.is_tried:
            with self._eager():  # its few tokens would be a shape of their own
                self.loss.try_out(self.engine, inputs)
        return self.loss(self.engine, inputs, labels)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Forward passes without gradients and dropout. Not compiled: each shape of a batch would be compiled for a few of them."""
        self.engine.eval()
        with self._eager(), torch.no_grad():
            yield
        self.engine.train()

    def _eager(self) -> contextlib.AbstractContextManager[Any]:
        return torch.compiler.set_stance("force_eager") if self.is_compiled else contextlib.nullcontext()


def init_distributed(world: World, keeps_freed_memory: bool) -> torch.device:
    """Joins the process group by torchrun's variables; NCCL on GPUs, gloo on CPUs. Returns the rank's device."""
    make_loadable()
    os.environ.setdefault("DEEPSPEED_TIMEOUT", str(int(COLLECTIVE_TIMEOUT.total_seconds() // 60)))
    accelerator = get_accelerator()
    device = torch.device(accelerator.device_name(world.local_rank) if accelerator.device_name() != "cpu" else "cpu")
    if device.type == "cpu":
        keep_freed_memory() if keeps_freed_memory else give_freed_memory_back()
    else:
        accelerator.set_device(world.local_rank)
    deepspeed.init_distributed(
        dist_backend="gloo" if device.type == "cpu" else accelerator.communication_backend_name(),
        auto_mpi_discovery=False,
        verbose=False,
        timeout=COLLECTIVE_TIMEOUT,
        rank=world.rank,
        world_size=world.world_size,
    )
    if device.type == "cpu" and (collectives := open_collectives(world.rank, world.world_size)):
        serve_deepspeed(collectives)
    return device


def seed_generators(seed: int, device: torch.device) -> None:
    """Seeds what a rank on `device` draws with. `torch.manual_seed` does so too, but formats a stack for each kind of accelerator
    that is not in use, in case it will be (torch 2.13: 1.5 ms, with every micro-step)."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _allow_fp16(device: torch.device) -> None:
    """DeepSpeed refuses fp16 on CPUs without its instructions; torch computes it on any, slowly, which tests of fp16 need."""
    accelerator = get_accelerator()
    if device.type == "cpu" and not accelerator.is_fp16_supported():
        accelerator.is_fp16_supported = lambda: True


def deepspeed_config(config: TrainConfig, plan: BatchPlan) -> dict[str, Any]:
    """The config given to DeepSpeed: what the user passed through, and on top what zerofleet owns.

    DeepSpeed's own batch arithmetic sees the micro size and the accumulation only; the loss is scaled by tokens
    (loop.py), so nothing depends on its idea of a train batch size.
    """
    train = config.train
    merged = copy.deepcopy(config.deepspeed)
    merged["train_micro_batch_size_per_gpu"] = train.micro_batch_size
    merged["gradient_accumulation_steps"] = plan.gradient_accumulation_steps
    # At stage 0 in fp32 the loop clips by itself: DeepSpeed would not tell it the norm.
    merged["gradient_clipping"] = 0.0 if clips_itself(config) else train.gradient_clipping
    merged.setdefault("zero_optimization", {})["stage"] = train.zero_stage
    merged.setdefault("steps_per_print", 2**31)
    merged["zero_allow_untested_optimizer"] = True
    # bf16 accumulation would make the gradient depend on the world size. DeepSpeed has no such mix at stage 0.
    accumulation = train.precision if train.zero_stage == 0 else "fp32"
    merged.setdefault("data_types", {}).setdefault("grad_accum_dtype", accumulation)
    merged.setdefault("communication_data_type", "fp32")
    if train.precision == "bf16":
        # Without the check ZeRO-2 applies NaN gradients silently; the update is ZeRO-1's (bf16_gradients.py).
        owned = {"enabled": True, "check_grad_overflow": True, "immediate_grad_update": True}
        merged["bf16"] = {**owned, **merged.get("bf16", {})}
    elif train.precision == "fp16":
        merged["fp16"] = {**FP16_DEFAULTS, **merged.get("fp16", {}), "enabled": True}
    return merged


def clips_itself(config: TrainConfig) -> bool:
    """Whether the loop, not DeepSpeed, computes the gradient norm and clips."""
    return config.train.zero_stage == 0 and config.train.precision == "fp32"


def is_finite(norm: float) -> bool:
    """Of a gradient norm: DeepSpeed reports an invalid one as -1, too."""
    return 0 <= norm < float("inf")


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: weight decay on matrices (two dimensions and more), none on biases and norms."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    dimensions = {id(p): len(getattr(p, "ds_shape", p.shape)) for p in trainable}
    groups = [
        {"params": [p for p in trainable if dimensions[id(p)] >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if dimensions[id(p)] < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(config: TrainConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019): torch's, one pass over all it updates; DeepSpeed's for CPUs where the optimizer is offloaded; our own where moments are bf16."""
    train = config.train
    offload = config.deepspeed.get("zero_optimization", {}).get("offload_optimizer", {}).get("device", "none")
    arguments: dict[str, Any] = {"lr": train.learning_rate, "betas": train.betas, "eps": train.eps}
    if offload != "none":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, adamw_mode=True, **arguments)  # type: ignore[no-any-return]
    if train.moments_precision == "bf16":
        return Bf16MomentsAdamW(groups, **arguments)
    return torch.optim.AdamW(groups, fused=True, **arguments)


def build_engine(config: TrainConfig, resolved: PretrainedConfig, plan: BatchPlan, device: torch.device) -> Engine:
    """Model, optimizer and DeepSpeed engine of this rank, before any checkpoint is loaded. UserError when the model cannot keep
    documents apart though `data.document_mask` wants it, or for what cannot be compiled."""
    if config.train.precision == "fp16":
        _allow_fp16(device)
    if config.train.compile and config.train.zero_stage == 3:
        raise UserError("train.compile=true with train.zero_stage=3: set one of them otherwise (docs/speed.md)")
    ds_config = deepspeed_config(config, plan)
    if device.type == "cpu":
        ds_config["zero_optimization"].setdefault("reduce_bucket_size", CPU_REDUCE_BUCKET_ELEMENTS)
    keep = HfDeepSpeedConfig(ds_config) if config.train.zero_stage == 3 else None
    zero_init = deepspeed.zero.Init(config_dict_or_path=ds_config) if keep else contextlib.nullcontext()
    model = build_model(config, resolved, zero_init, on_gpu=device.type != "cpu")
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    optimizer = build_optimizer(config, parameter_groups(model, config.train.weight_decay))
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_config)
    spare_copies(engine.optimizer)
    _restore_buffers(model, buffers)
    if config.data.document_mask:
        check_document_mask(engine, config.train.micro_batch_size, config.data.sequence_length, device)
    if config.train.compile:
        compile_layers(model)
    return Engine(engine, model, shape_of(model), device, TokenLoss(model), config.train.compile, keep)


def compile_layers(model: PreTrainedModel) -> None:
    """Regional compilation (https://docs.pytorch.org/tutorials/recipes/regional_compilation.html): layers are alike, so that one is compiled for all.
    In this process, by one thread: workers would outlive a rank that is killed, and its cores are the ranks' already."""
    torch._inductor.config.compile_threads = 1
    for layer in layers_of(model):
        layer.compile(dynamic=False)


def _restore_buffers(model: torch.nn.Module, buffers: dict[str, torch.Tensor]) -> None:
    """DeepSpeed casts buffers with the weights; rotary frequencies in 16 bits would differ from the exported model's."""
    for name, value in buffers.items():
        module_name, _, key = name.rpartition(".")
        module = model.get_submodule(module_name)
        module._buffers[key] = value.to(module._buffers[key].device)  # type: ignore[union-attr]
