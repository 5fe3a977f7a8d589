"""What cannot be read in a corpus, how much goes with it, and what becomes of it: `data.on_bad`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NoReturn

from zerofleet.trainer.errors import DataError

Lost = Literal["document", "rows", "rest", "shard"]
"""How much is left out: one document, some rows, all that follows in the data shard, or the whole of it, what was read before included."""


class BadData(DataError):
    """One place of the corpus that cannot be used. `what` names shard, place and problem; `lost` is what is left out with it."""

    def __init__(self, what: str, remedy: str, lost: Lost = "rest") -> None:
        super().__init__(f"{what}: {remedy}, or leave it out and go on (data.on_bad=quarantine)")
        self.what, self.remedy, self.lost = what, remedy, lost

    def __reduce__(self) -> tuple[type, tuple[str, str, Lost]]:
        return type(self), (self.what, self.remedy, self.lost)


OnBad = Callable[[BadData], None]
"""Raises, or returns when what is bad is to be left out."""


def stop(error: BadData) -> NoReturn:
    """`data.on_bad=stop`: nothing is left out, the user decides."""
    raise error


def leave_out(error: BadData) -> None:
    """What is bad is left out, and somebody else has said so."""


@dataclass(frozen=True)
class Reading:
    """How a data shard is read, and what is said of it."""

    name: str
    """For messages, as the user would write it."""
    section: str = "data"
    """Where its settings stand: `data`, or `data.sources.<name>`."""
    text_field: str = "text"
    max_bytes: int = 2**28
    """Of one document; what is longer is bad, and is never held in memory."""
    on_bad: OnBad = stop
