"""The peers that torch brings: DistributedDataParallel and FSDP2, with fp32 weights that are computed with in bf16.

DDP replicates the optimizer's states and reduces gradients in fp32, under autocast (https://docs.pytorch.org/docs/stable/notes/ddp.html,
.../amp.html). FSDP2 partitions everything and casts by its own policy; what a layer has gathered it keeps for the backward, which is its documented
way to trade memory for traffic, and what is nearest to ZeRO-1 (.../distributed.fsdp.fully_shard.html).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from zerofleet.benchmarks.peers.training.task import GRADIENT_CLIPPING, Task
from zerofleet.benchmarks.peers.training.turns import Turns

Context = contextlib.AbstractContextManager[Any]


def train_ddp(task: Task, turns: Turns) -> None:
    dist.init_process_group("gloo")
    plain = task.model()
    model: Any = DistributedDataParallel(plain, gradient_as_bucket_view=True)
    compiled = torch.compile(model) if task.is_compiled else model

    def loss_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            loss: torch.Tensor = compiled(**batch).loss
        return loss

    _loop(task, turns, plain, loss_of, lambda is_last: contextlib.nullcontext() if is_last else model.no_sync())


def train_fsdp2(task: Task, turns: Turns) -> None:
    dist.init_process_group("gloo")
    model = task.model()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model.model.layers:
        if task.is_compiled:
            layer.compile()  # by layers, as torchtitan does
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)

    def micro_step(is_last: bool) -> Context:
        model.set_requires_gradient_sync(is_last)
        return contextlib.nullcontext()

    _loop(task, turns, model, lambda batch: model(**batch).loss, micro_step)


def _loop(
    task: Task,
    turns: Turns,
    model: Any,
    loss_of: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    micro_step: Callable[[bool], Context],
) -> None:
    """`micro_step(is_last)` is around a forward and backward, of which the last one's gradients are reduced."""
    optimizer = task.optimizer(model)
    batches = iter(task.batches(dist.get_rank()))
    turns.ready()
    while True:
        total = 0.0
        for number in range(task.accumulation):
            with micro_step(number == task.accumulation - 1):
                loss = loss_of(next(batches))
                torch.autograd.backward(loss / task.accumulation)
            total += loss.item()
        clip_grad_norm_(model.parameters(), GRADIENT_CLIPPING)
        optimizer.step()
        optimizer.zero_grad()
        turns.done(total / task.accumulation)
