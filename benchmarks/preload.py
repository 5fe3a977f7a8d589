"""What the fork server of rank_group.py imports once: ranks and helpers then start in a moment, and none is measured while it imports."""

import torch.distributed.checkpoint

from zerofleet.cluster.preload import preload

preload("llama", print)

__all__ = ["torch"]
