"""What ranks are forked with, so that none has to import anything while others are measured."""

import accelerate.utils.deepspeed
import torch.distributed.fsdp
from transformers import Trainer

from zerofleet.benchmarks import preload

__all__ = ["Trainer", "accelerate", "preload", "torch"]
