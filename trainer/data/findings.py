"""What an audit finds: values that say in a sentence what is wrong, at which steps, of which attempt and rank. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from zerofleet.trainer.data.quarantine import Ranges, named, union

Kind = Literal["gap", "repeat", "quarantined", "positions", "counts", "data", "attempt"]


@dataclass(frozen=True)
class Finding:
    """Something that is not as it has to be, at steps `first_step` to `last_step`."""

    kind: Kind
    first_step: int
    last_step: int
    attempt: int | None
    """None: several."""
    text: str
    ranges: list[list[int]]
    """The sample positions that it is about."""
    ranks: tuple[int, ...] = ()
    """Where the ledger tells which were fed something else."""

    def __str__(self) -> str:
        steps = steps_named([[self.first_step, self.last_step + 1]])
        where = f"{steps} (attempt {self.attempt})"
        match self.kind:
            case "gap":
                return f"{named(self.ranges)} were fed to nobody: {self.text}"
            case "repeat":
                return f"{named(self.ranges)} were fed more than once: {self.text}"
            case "quarantined":
                return f"{named(self.ranges)} are quarantined and were fed all the same: {self.text}"
            case "positions":
                return f"{where}: not the positions that the order gives: {self.text}"
            case "counts":
                return f"{where}: not the counts that the index gives: {self.text}"
            case "data":
                return f"{where}: wrong data: {self.text}"
            case "attempt":
                return f"{steps} cannot be of attempt {self.attempt}: {self.text}"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ranks": list(self.ranks), "message": str(self)}


def joined(findings: Iterable[Finding]) -> list[Finding]:
    """Findings in the order of their steps; what is the same at steps that follow each other is one, with the text of the first."""
    found: list[Finding] = []
    newest: dict[tuple[str, int | None, tuple[int, ...]], int] = {}
    for finding in sorted(findings, key=lambda finding: finding.first_step):
        key = (finding.kind, finding.attempt, finding.ranks)
        before = found[newest[key]] if key in newest else None
        if before is not None and finding.kind in _OF_STEPS and before.last_step + 1 == finding.first_step:
            text = (
                before.text
                if before.text.endswith(_AND_SO_ON) or before.text == finding.text
                else before.text + _AND_SO_ON
            )
            before.ranges.extend(finding.ranges)
            found[newest[key]] = replace(before, last_step=finding.last_step, text=text)
        else:
            newest[key] = len(found)
            found.append(replace(finding, ranges=list(finding.ranges)))
    return [replace(finding, ranges=union(finding.ranges)) for finding in found]


def steps_named(ranges: Ranges) -> str:
    """`step 8`, `steps 8 to 12, 20`."""
    words = [f"{start} to {end - 1}" if end - start > 1 else f"{start}" for start, end in ranges]
    is_one = len(ranges) == 1 and ranges[0][1] - ranges[0][0] == 1
    return f"step{'' if is_one else 's'} {', '.join(words)}"


_OF_STEPS: Sequence[Kind] = ("positions", "counts", "data", "attempt")
"""Kinds that are found step by step."""
_AND_SO_ON = "; and so on"
