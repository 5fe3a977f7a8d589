"""One reason why a run does not run yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal[
    "image pull error",
    "webhook refusal",
    "missing object",
    "unbound volume",
    "volume not mounted",
    "container fails",
    "queue stopped",
    "no quota",
    "untolerated taint",
    "no matching node",
    "not enough GPUs",
    "not enough of a resource",
    "no operator",
    "queued",
    "starting",
]
ORDER: tuple[Kind, ...] = get_args(Kind)
"""What goes away by itself comes last."""


@dataclass(frozen=True)
class Reason:
    """`sentence` says what is in the way, with numbers, and what to do about it."""

    kind: Kind
    sentence: str
