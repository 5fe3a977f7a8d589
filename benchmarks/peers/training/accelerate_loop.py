"""The peer Accelerate with DeepSpeed (https://huggingface.co/docs/accelerate/usage_guides/deepspeed)."""

from __future__ import annotations

from accelerate import Accelerator, DeepSpeedPlugin, DistributedType, InitProcessGroupKwargs

from zerofleet.benchmarks.peers.training.task import Task
from zerofleet.benchmarks.peers.training.turns import Turns


def train(task: Task, turns: Turns) -> None:
    accelerator = Accelerator(
        # Without the backend it takes every rank on CPUs for a world of its own; with `cpu=True` it leaves DeepSpeed out, and its clipping.
        kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")],
        mixed_precision="bf16",
        gradient_accumulation_steps=task.accumulation,
        deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=task.deepspeed_config()),
        dynamo_backend="inductor" if task.is_compiled else None,
    )
    assert accelerator.distributed_type == DistributedType.DEEPSPEED
    plain = task.model()
    # Not the loader, which would be dealt by Accelerate's own rule: everybody has the same data.
    model, optimizer = accelerator.prepare(plain, task.optimizer(plain))
    total = 0.0
    turns.ready()
    for batch in task.batches(accelerator.process_index):
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item()
        if accelerator.sync_gradients:
            turns.done(total / task.accumulation)
            total = 0.0
