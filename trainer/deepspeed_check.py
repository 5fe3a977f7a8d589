"""Whether DeepSpeed takes the values of the job's `deepspeed` section, asked of its own config classes."""

from __future__ import annotations

from typing import Any

from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError
from pydantic import ValidationError

from zerofleet.trainer.batch import BatchPlan
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.engine import deepspeed_config
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.passthrough_keys import DEEPSPEED_VERSION

_SECTIONS = {
    "DeepSpeedZeroConfig": "zero_optimization",
    "DeepSpeedBF16Config": "bf16",
    "DeepSpeedFP16Config": "fp16",
    "CommsLoggerConfig": "comms_logger",
    "DeepSpeedThroughputTimerConfig": "timers.throughput",
}
"""DeepSpeed's pydantic classes by name, and the section that each of them reads."""


def check_deepspeed_section(config: TrainConfig, world_size: int) -> None:
    """Builds DeepSpeed's config as the engine will, without a process group. Raises UserError that names each bad value."""
    train = config.train
    plan = BatchPlan.of(train.global_batch_size, train.micro_batch_size, world_size)
    try:
        DeepSpeedConfig(deepspeed_config(config, plan))
    except ValidationError as error:
        raise UserError(_explain(error)) from error
    except (DeepSpeedConfigError, ValueError, TypeError, AttributeError, AssertionError) as error:
        # Not every section is a pydantic class: elsewhere DeepSpeed computes with a value and fails where it can.
        raise UserError(
            f"deepspeed: DeepSpeed {DEEPSPEED_VERSION} does not take the section {config.deepspeed}: {error}. "
            "Give the keys values of the types that it documents, or remove them"
        ) from error


def _explain(error: ValidationError) -> str:
    """One line for each value that is wrong: where it is, what it is, what is expected."""
    section = _SECTIONS.get(error.title, error.title)
    return "\n".join(
        _explain_one(section, details["loc"], details["input"], details["msg"]) for details in error.errors()
    )


def _explain_one(section: str, location: tuple[int | str, ...], value: Any, expected: str) -> str:
    where = ".".join(map(str, ("deepspeed", section, *location)))
    return (
        f"{where}: it is {value!r}, which DeepSpeed {DEEPSPEED_VERSION} does not take ({expected}): "
        "give such a value, or remove the key to have DeepSpeed's default"
    )
