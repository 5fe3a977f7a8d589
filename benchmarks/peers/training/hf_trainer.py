"""The peer Hugging Face Trainer with DeepSpeed (https://huggingface.co/docs/transformers/deepspeed), over its own loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from zerofleet.benchmarks.peers.training import task as settings
from zerofleet.benchmarks.peers.training.task import Task
from zerofleet.benchmarks.peers.training.turns import Turns


class TakesTurns(TrainerCallback):
    """A step is done when its loss is logged: the mean of all ranks."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def on_train_begin(self, *arguments: Any, **state: Any) -> None:
        self._turns.ready()

    def on_log(self, *arguments: Any, logs: dict[str, float], **state: Any) -> None:
        self._turns.done(logs["loss"])


def train(task: Task, turns: Turns) -> None:
    arguments = TrainingArguments(
        output_dir=str(Path(task.folder, "hf_trainer")),
        per_device_train_batch_size=task.micro_batch_size,
        gradient_accumulation_steps=task.accumulation,
        max_steps=task.steps,
        learning_rate=settings.LEARNING_RATE,
        lr_scheduler_type="constant",
        adam_beta1=settings.BETAS[0],
        adam_beta2=settings.BETAS[1],
        adam_epsilon=settings.EPS,
        weight_decay=settings.WEIGHT_DECAY,
        max_grad_norm=settings.GRADIENT_CLIPPING,
        bf16=True,
        torch_compile=task.is_compiled,
        use_cpu=True,
        deepspeed=task.deepspeed_config(),
        train_sampling_strategy="sequential",
        remove_unused_columns=False,  # it knows no `shift_labels`
        dataloader_pin_memory=False,
        logging_steps=1,  # zerofleet tells every step's loss, too
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        ddp_backend="gloo",
    )
    trainer = Trainer(model=task.model(), args=arguments, train_dataset=task.sequences(), callbacks=[TakesTurns(turns)])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
