"""What a job will take, before anything is built: parameters, memory, bytes that travel, seconds. Closed forms; neither torch nor
DeepSpeed is imported, so that a laptop can plan for a cluster."""

from zerofleet.trainer.sizing.model import (
    VOCABULARY_MULTIPLE,
    ModelSizes,
    num_parameters,
    parameters_of,
    sizes_of,
    vocabulary_of,
)
from zerofleet.trainer.sizing.state import StateSizes

__all__ = [
    "VOCABULARY_MULTIPLE",
    "ModelSizes",
    "StateSizes",
    "num_parameters",
    "parameters_of",
    "sizes_of",
    "vocabulary_of",
]
