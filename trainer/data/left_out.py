"""What a preparation left out or altered, and why: counted and named, part by part, and in the cache's index."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from zerofleet.trainer.data.bad_data import BadData

NAMED = 1000
"""Bad places that the index names; all are counted."""


@dataclass
class Notes:
    """Of some documents: what is bad in them, and what `data.filter` and `data.scrub` did."""

    bad: list[BadData] = field(default_factory=list)
    num_filtered: int = 0
    num_scrubbed: int = 0

    def add(self, other: Notes) -> None:
        self.bad += other.bad
        self.num_filtered += other.num_filtered
        self.num_scrubbed += other.num_scrubbed

    def to_bytes(self) -> bytes:
        bad = [[error.what, error.remedy, error.lost] for error in self.bad]
        return json.dumps({"bad": bad, "filtered": self.num_filtered, "scrubbed": self.num_scrubbed}).encode()

    @staticmethod
    def from_bytes(data: bytes) -> Notes:
        value = json.loads(data)
        return Notes([BadData(*fields) for fields in value["bad"]], value["filtered"], value["scrubbed"])


@dataclass(frozen=True)
class LeftOut:
    """What a cache lacks of its corpus. It says nothing about what is there: the cache's fingerprint is of that."""

    num_bad: int = 0
    """Documents, row groups, rests of files and files that could not be read."""
    named: tuple[str, ...] = ()
    """The first of them: where, and what is wrong there."""
    num_filtered: int = 0
    """Documents that `data.filter` left out."""
    num_scrubbed: int = 0
    """Documents that `data.scrub` altered; they are not left out."""
    num_equal: int = 0
    """Copies of documents that are there."""
    num_near: int = 0
    """Documents that are nearly equal to one that is there."""

    @staticmethod
    def of(notes: Iterable[Notes], num_equal: int = 0, num_near: int = 0) -> LeftOut:
        num_bad = num_filtered = num_scrubbed = 0
        named: list[str] = []
        for of_part in notes:
            num_bad += len(of_part.bad)
            num_filtered += of_part.num_filtered
            num_scrubbed += of_part.num_scrubbed
            named += [f"{_LOST[error.lost]}: {error.what}" for error in of_part.bad[: NAMED - len(named)]]
        return LeftOut(num_bad, tuple(named), num_filtered, num_scrubbed, num_equal, num_near)

    def __bool__(self) -> bool:
        return self != LeftOut()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(value: dict[str, Any]) -> LeftOut:
        return LeftOut(**{**value, "named": tuple(value["named"])})

    @property
    def bad(self) -> str:
        """One line about what could not be read; empty when there is nothing."""
        if not self.num_bad:
            return ""
        more = f"; and {self.num_bad - 1} more" if self.num_bad > 1 else ""
        return f"{self.num_bad} bad {'places' if self.num_bad > 1 else 'place'} left out ({self.named[0]}{more})"

    def __str__(self) -> str:
        """One line about all of it; empty when there is nothing."""
        counts = {
            "left out by data.filter": self.num_filtered,
            "altered by data.scrub": self.num_scrubbed,
            "equal copies left out": self.num_equal,
            "near duplicates left out": self.num_near,
        }
        return ", ".join(
            [*([self.bad] if self.bad else []), *(f"{count} {what}" for what, count in counts.items() if count)]
        )


_LOST = {"document": "a document", "rows": "rows", "rest": "all from there on", "shard": "the whole file"}
