"""The peak that MFU is a fraction of: the vendor's figure for a GPU, a measured matmul for anything else."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

DENSE_BF16_PEAK = {
    # Dense (no sparsity) bf16/fp16 tensor-core peaks, FLOP/s, from NVIDIA's data sheets.
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10": 125e12,
}
_MATMUL_SIZE = 512
_REPETITIONS = 7


@dataclass(frozen=True)
class Peak:
    """FLOP/s of one rank's device, and where the figure is from."""

    flops_per_second: float
    source: str


def device_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """The vendor's peak when the device is known (16-bit dtypes only), else the best of a few measured matmuls."""
    if device.type == "cuda" and dtype != torch.float32:
        name = torch.cuda.get_device_name(device)
        for known, peak in DENSE_BF16_PEAK.items():
            if known in name:
                return Peak(peak, f"{name}, vendor's dense 16-bit peak")
    return Peak(
        measure_matmul(device, dtype), f"{_MATMUL_SIZE}^3 matmul in {dtype}, measured at start on every rank at once"
    )


def measure_matmul(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of a few square matmuls; some 50 ms on a CPU core."""
    a = torch.ones(_MATMUL_SIZE, _MATMUL_SIZE, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(_REPETITIONS):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * _MATMUL_SIZE**3 / best
