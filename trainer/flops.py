"""The peak that MFU is a fraction of: the vendor's figure for a GPU, a measured matmul for anything else."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from zerofleet.trainer.peaks import dense_16_bit_peak

_MATMUL_SIZE = {"cpu": 512, "cuda": 8192}
"""A GPU needs a large one to show what it can do."""
_MEASURE_S = 0.05


@dataclass(frozen=True)
class Peak:
    """FLOP/s of one rank's device, and where the figure is from."""

    flops_per_second: float
    source: str
    fp32_flops_per_second: float = 0.0
    """Measured beside a 16-bit peak on a CPU; 0 where it was not."""

    @property
    def is_emulated(self) -> bool:
        """Whether the 16-bit dtype is slower than fp32: then the processor has no instructions for it."""
        return self.flops_per_second < 0.5 * self.fp32_flops_per_second

    def warning(self, precision: str) -> str:
        """For the user: what it costs, and the remedy."""
        ratio = self.fp32_flops_per_second / self.flops_per_second
        return (
            f"this processor has no {precision} instructions: a matmul is {ratio:.0f} x slower than in fp32 "
            f"({self.flops_per_second / 1e9:.1f} against {self.fp32_flops_per_second / 1e9:.0f} GFLOP/s per rank). "
            "Set train.precision=fp32"
        )


def device_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """The vendor's peak when the device is known (16-bit dtypes only), else the best of a few measured matmuls."""
    if device.type == "cuda" and dtype != torch.float32:
        name = torch.cuda.get_device_name(device)
        if peak := dense_16_bit_peak(name):
            return Peak(peak, f"{name}, vendor's dense 16-bit peak")
    source = f"{_MATMUL_SIZE[device.type]}^3 matmul in {dtype}, measured at start on every rank at once"
    compare = dtype != torch.float32 and device.type == "cpu"
    return Peak(measure_matmul(device, dtype), source, measure_matmul(device, torch.float32) if compare else 0.0)


def measure_matmul(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of a few square matmuls; some 50 ms on a CPU core."""
    size = _MATMUL_SIZE[device.type]
    a = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    began = time.perf_counter()
    while time.perf_counter() - began < _MEASURE_S:
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
