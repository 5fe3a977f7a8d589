"""What a figure was measured on: recorded with every run and every result, so that unlike machines are not compared."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from zerofleet.cluster.host import num_cores

PACKAGES = ("zerofleet", "torch", "deepspeed", "transformers", "ray")
_NVIDIA = Path("/proc/driver/nvidia")


def fingerprint() -> dict[str, Any]:
    """Processor, cores that this process may use, memory (GiB), GPUs with their driver, Python and package versions, load average."""
    return {
        "processor": _processor(),
        "cores": num_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "accelerators": _gpus(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "load_average": os.getloadavg(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _gpus() -> list[str]:
    """Names of the GPUs of this machine and the version of their driver, by NVIDIA's driver: torch is not needed for it."""
    files = sorted(_NVIDIA.glob("gpus/*/information"))
    lines = [line for file in files for line in file.read_text().splitlines() if line.startswith("Model:")]
    module = _NVIDIA / "version"
    found = re.search(r"\d+\.[\d.]+", module.read_text()) if module.exists() else None
    driver = f" (driver {found[0]})" if found else ""
    return [f"{line.partition(':')[2].strip()}{driver}" for line in lines]


def _processor() -> str:
    with open("/proc/cpuinfo") as file:  # noqa: PTH123
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.processor()
