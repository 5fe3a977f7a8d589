"""What stays as it is for the life of a run, whoever goes on with it: a driver or torchrun."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FROZEN = (
    "run.name",
    "run.storage",
    "run.seed",
    "run.init_from",
    "data",
    "model",
    "train.global_batch_size",
    "train.moments_precision",
    "silo",
    "silos.members",
    "silos.interval_steps",
    "silos.overlap_steps",
    "silos.strategy",
    "silos.strategy_options",
    "silos.codec",
    "silos.privacy",
    "silos.secure_aggregation",
)
"""What a resume may not change: the sample order, the ledger and the state of the run depend on it."""

NOT_FROZEN = frozenset(
    {
        "data.cache",
        "data.max_document_bytes",
        "data.stream.url",
        "data.stream.max_bytes",
        "model.attn_implementation",
        "model.liger_kernels",
    }
)
"""Below a frozen section, but only a place, a bound on memory or disk (data that is prepared with another is the same, or refused), or a kernel,
which rounds otherwise."""


def frozen_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """One line for each frozen field that differs between two jobs, given as plain mappings of their sections."""
    old, new = flatten(before), flatten(after)
    return [
        f"{path} is frozen for the life of a run: it is {old.get(path)!r}, not {new.get(path)!r}"
        for path in sorted(old.keys() | new.keys())
        if old.get(path) != new.get(path) and is_frozen(path)
    ]


def is_frozen(path: str) -> bool:
    """Whether the field at this dotted path is."""
    return path not in NOT_FROZEN and any(path == key or path.startswith(f"{key}.") for key in FROZEN)


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted path; lists are leaves."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict) and item:
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat
