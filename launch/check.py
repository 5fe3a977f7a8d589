"""One line of what `doctor` reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Check:
    """`text` ends with the remedy unless `level` is ok."""

    level: Literal["ok", "warn", "fail"]
    name: str
    text: str
