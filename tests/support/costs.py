"""How the cost of something grows, on a machine that does other work as well."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

ROUNDS = 10


def costs_at_most(most: float, much_s: Callable[[], float], little_s: Callable[[], float]) -> bool:
    """Does one take at most `most` times the processor time of the other? Both are called and tell their seconds. The least of each
    counts, and who is within the bound is not measured again: other work on the machine only adds, so what is truly above it is above it in all rounds."""
    much = little = float("inf")
    gc.collect()
    gc.disable()  # what else lives in this process is not collected meanwhile
    try:
        for _ in range(ROUNDS):
            little, much = min(little, little_s()), min(much, much_s())
            if much <= most * little:
                return True
    finally:
        gc.enable()
    return False


def processor_time(call: Callable[[], object]) -> Callable[[], float]:
    def seconds() -> float:
        began = time.process_time()
        call()
        return time.process_time() - began

    return seconds
