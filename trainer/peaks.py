"""Vendors' peaks by the GPU's name. Light: a laptop plans with them."""

from __future__ import annotations

import re

DENSE_BF16_PEAK = {
    # Dense (no sparsity) bf16/fp16 tensor-core peaks, FLOP/s, from NVIDIA's data sheets.
    "B200": 2250e12,
    "GB200": 2250e12,
    "H200": 989e12,
    "GH200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
}


def dense_16_bit_peak(name: str) -> float | None:
    """FLOP/s of the GPU that `name` holds (`NVIDIA H100 80GB HBM3`, or with hyphens as in Kubernetes' labels); None when it is not known."""
    plain = f" {re.sub('[-_]', ' ', name)} "
    return next((peak for known, peak in DENSE_BF16_PEAK.items() if f" {known} " in plain), None)
