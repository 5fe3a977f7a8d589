"""The audit: what each step that counts should have been fed, against what the ledger says that it was. Pure.

A step counts for the last attempt that began before it (`run_folder.last_that_counts`). For each the plan is worked out again from
the sample order, that attempt's quarantine and the prepared data, by the functions that the ranks use: positions, counts, and the
digest of the tokens. Then, whatever the plan says, the ranges of all lines that count must hold every position once
(`coverage.stretches`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from zerofleet.trainer.data.coverage import stretches
from zerofleet.trainer.data.feed import Feed
from zerofleet.trainer.data.findings import Finding, Kind, joined, steps_named
from zerofleet.trainer.data.ledger import wrong_ranks
from zerofleet.trainer.data.ledger_table import LedgerTable
from zerofleet.trainer.data.order import ranges_of, step_positions
from zerofleet.trainer.data.quarantine import Ranges, below, named, num_positions, union, without
from zerofleet.trainer.run_folder import AttemptRecord, last_that_counts

Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]
Progress = Callable[[int, int], None]
"""Steps whose data was looked at, of how many."""

_CHUNK_POSITIONS = 2**18
"""Positions whose data is worked out at a time."""


@dataclass(frozen=True)
class Audit:
    """What an audit came to."""

    findings: tuple[Finding, ...]
    last_step: int
    """The newest step that counts and is known to have been done."""
    num_positions: int
    """Positions that the steps up to it should have been fed."""
    num_tokens: int
    """Target tokens of the lines that count."""
    num_repeated: int
    """Lines that do not count: their steps were done again."""
    left_out: tuple[tuple[AttemptRecord, list[list[int]]], ...]
    """What each attempt was the first to leave out."""

    @property
    def is_exact(self) -> bool:
        return not self.findings

    @property
    def proven_step(self) -> int:
        """Up to here every position was fed once, to the step that it belongs to."""
        return min((finding.first_step - 1 for finding in self.findings), default=self.last_step)


@dataclass(frozen=True)
class Span:
    """Steps `first` to `last` count as `attempt` did them."""

    attempt: int
    first: int
    last: int
    quarantine: Ranges


def spans(attempts: Sequence[AttemptRecord], last_step: int) -> list[Span]:
    """Which attempt each step up to `last_step` counts for, in the order of steps."""
    found = []
    for record in sorted(attempts, key=lambda record: record.attempt):
        limit = last_that_counts(record.attempt, attempts)
        last = last_step if limit is None else min(limit, last_step)
        if record.start_step < last:
            found.append(Span(record.attempt, record.start_step + 1, last, union(record.quarantine)))
    return found


def audit(
    table: LedgerTable,
    attempts: Sequence[AttemptRecord],
    feed: Feed,
    total_steps: int,
    known_step: int = 0,
    progress: Progress = lambda done, total: None,
    data: str = "",
) -> Audit:
    """Proves a ledger, or finds what is wrong with it.

    `feed` reads the run's data; its quarantine and world size are not looked at. `total_steps` are those of the job; `known_step` is one
    that counts and must be in the ledger, such as that of a checkpoint. `data` is the fingerprint of what `feed` reads: a line that
    names another is a finding.
    """
    limit = max(total_steps, known_step)
    is_possible, strays = _sorted_out(table, attempts, limit)
    last = {record.attempt: last_that_counts(record.attempt, attempts) for record in attempts}
    counts_until = {attempt: limit if step is None else step for attempt, step in last.items()}
    limits = np.array([counts_until.get(attempt, 0) for attempt in table.attempts.tolist()], dtype=np.int64)
    counts = is_possible & (table.steps <= limits)
    last_step = max(known_step, int(table.steps[counts].max(initial=0)))
    repeated = np.flatnonzero(is_possible & ~counts)
    checked = _Checked.of(table, feed, spans(attempts, last_step), counts, repeated, last_step)
    checked.check_plan(progress)
    checked.check_fingerprints(data)
    checked.check_coverage()
    return Audit(
        findings=tuple(joined([*strays, *checked.findings])),
        last_step=last_step,
        num_positions=last_step * feed.plan.global_batch_size,
        num_tokens=int(table.num_tokens[checked.line_of[checked.line_of >= 0]].sum()),
        num_repeated=len(repeated),
        left_out=tuple(_left_out(attempts)),
    )


def _left_out(attempts: Sequence[AttemptRecord]) -> Iterator[tuple[AttemptRecord, list[list[int]]]]:
    before: list[list[int]] = []
    for record in sorted(attempts, key=lambda record: record.attempt):
        if new := without(record.quarantine, before):
            yield record, new
        before = union(before, new)


def _sorted_out(
    table: LedgerTable, attempts: Sequence[AttemptRecord], limit: int
) -> tuple[NDArray[np.bool_], list[Finding]]:
    """Which lines can be, and what is to be said of the others."""
    is_possible, findings = np.ones(len(table), bool), []
    starts = {record.attempt: record.start_step for record in attempts}
    for attempt in map(int, np.unique(table.attempts)):
        lines, start = table.attempts == attempt, starts.get(attempt)
        wrong = {
            "there is no such attempt": lines & (start is None),
            f"the attempt began after step {start}": lines & (table.steps <= (start or 0)) & (start is not None),
            f"the run has {limit} steps": lines & (table.steps > limit) & (start is not None),
        }
        for text, flags in wrong.items():
            findings += [Finding("attempt", step, step, attempt, text, []) for step in table.steps[flags].tolist()]
            is_possible &= ~flags
    return is_possible, findings


@dataclass
class _Checked:
    """The lines that count, as they are looked through."""

    table: LedgerTable
    feed: Feed
    spans: list[Span]
    lines: Int64
    """All that count, by their steps."""
    line_of: Int64
    """By step, its first line; -1: it has none."""
    again: Int64
    """The others of a step that has several."""
    repeated: Int64
    """Lines that do not count, since their steps were done again."""
    findings: list[Finding] = field(default_factory=list)
    misplaced: list[Int64] = field(default_factory=list)
    """Lines with other positions than the order gives their step."""

    @staticmethod
    def of(
        table: LedgerTable,
        feed: Feed,
        of_attempts: list[Span],
        counts: NDArray[np.bool_],
        repeated: Int64,
        last_step: int,
    ) -> _Checked:
        lines = np.flatnonzero(counts)[np.argsort(table.steps[counts], kind="stable")]
        steps, firsts = np.unique(table.steps[lines], return_index=True)
        line_of = np.full(last_step + 1, -1, dtype=np.int64)
        line_of[steps] = lines[firsts]
        return _Checked(table, feed, of_attempts, lines, line_of, np.delete(lines, firsts), repeated)

    @property
    def quarantine(self) -> Ranges:
        """Of all attempts whose steps count; each takes over that of the one before."""
        return union(*(span.quarantine for span in self.spans))

    # -- against the plan ------------------------------------------------------------------------------------------
    def check_plan(self, progress: Progress) -> None:
        """Every line against what its step should have been fed."""
        batch, last_step = self.feed.plan.global_batch_size, len(self.line_of) - 1
        stride = max(1, _CHUNK_POSITIONS // batch)
        for span in self.spans:
            for first in range(span.first, span.last + 1, stride):
                steps = np.arange(first, min(first + stride, span.last + 1))
                positions = step_positions(first - 1, batch, span.quarantine, len(steps)).reshape(-1, batch)
                is_there = self.line_of[steps] >= 0
                self._check_steps(span.attempt, steps[is_there], positions[is_there])
                progress(int(steps[-1]), last_step)

    def _check_steps(self, attempt: int, steps: Int64, positions: Int64) -> None:
        """`positions` is [len(steps), global batch]; every step has a line."""
        lines, table, store = self.line_of[steps], self.table, self.feed.store
        self._check_positions(attempt, steps, positions)
        samples, which = np.unique(self.feed.samples_at(positions.ravel()), return_inverse=True)
        num_tokens = store.num_targets(samples)[which].reshape(positions.shape).sum(axis=1)
        is_other = (table.num_sequences[lines] != positions.shape[1]) | (table.num_tokens[lines] != num_tokens)
        for row in np.flatnonzero(is_other):
            says = f"{table.num_sequences[lines[row]]} sequences with {table.num_tokens[lines[row]]} tokens"
            text = f"the ledger says {says}, the index {positions.shape[1]} with {num_tokens[row]}"
            self._say("counts", [steps[row]], attempt, text, ranges_of(positions[row]))
        digests = self.feed.digests_of(samples)[which].reshape(positions.shape)
        for row in np.flatnonzero(digests.sum(axis=1, dtype=np.uint64) != table.digests[lines]):
            text, ranks = self._wrong_data(int(lines[row]), digests[row])
            self._say("data", [steps[row]], attempt, text, ranges_of(positions[row]), ranks)

    def check_fingerprints(self, data: str) -> None:
        """Every line that says which data it was fed from."""
        for line in self.lines.tolist():
            if (said := self.table.data[line]) and data and said != data:
                text = f"the ledger says that it was fed from {said}, not from {data}"
                self._say(
                    "data", [self.table.steps[line]], int(self.table.attempts[line]), text, self.table.ranges(line)
                )

    def _check_positions(self, attempt: int, steps: Int64, positions: Int64) -> None:
        lines, batch = self.line_of[steps], positions.shape[1]
        is_wrong = self.table.num_positions[lines] != batch
        recorded = self.table.positions(lines[~is_wrong]).reshape(-1, batch)
        is_wrong[~is_wrong] = (recorded != positions[~is_wrong]).any(axis=1)
        self.misplaced.append(lines[is_wrong])
        for row in np.flatnonzero(is_wrong):
            recorded_ranges, planned = self.table.ranges(int(lines[row])), ranges_of(positions[row])
            text = f"the ledger says {named(recorded_ranges)}, the order {named(planned)}"
            self._say("positions", [steps[row]], attempt, text, planned)

    def _wrong_data(self, line: int, digests: UInt64) -> tuple[str, tuple[int, ...]]:
        """What is to be said, and the ranks that it is said of."""
        ranks = wrong_ranks(self.table.rank_digests[line], int(self.table.micro_batch_sizes[line]), digests)
        if ranks is None:
            return "which rank was fed it the ledger does not say", ()
        if not ranks:
            return "every rank's own digest is right, their sum is not: the line was altered", ()
        return f"rank {', '.join(map(str, ranks))} was fed other samples or tokens than those planned", ranks

    # -- every position once ---------------------------------------------------------------------------------------
    def check_coverage(self) -> None:
        """Every position up to the last step's was fed once, and what any attempt left out never."""
        unclaimed = self.spans[0].first - 1 if self.spans else len(self.line_of) - 1
        if unclaimed:
            bounds = [[0, unclaimed * self.feed.plan.global_batch_size]]
            self._say("gap", [1, unclaimed], None, "the run has no attempt that they count for", bounds)
        if not self.spans:
            return
        table, last, batch = self.table, self.spans[-1], self.feed.plan.global_batch_size
        end = int(step_positions(last.last - 1, batch, last.quarantine)[-1]) + 1
        lines = table.lines_of_ranges
        is_used = np.isin(lines, self.lines) & (table.starts >= 0) & (table.starts < table.ends)
        lines, starts, ends = lines[is_used], table.starts[is_used], table.ends[is_used]
        for stretch in stretches(starts, ends, self.quarantine, end):
            if stretch.fault == "gap":
                self._say_gap(stretch.start, stretch.end)
            else:
                holders = np.unique(lines[(starts < stretch.end) & (ends > stretch.start)])
                self._say_fed(stretch.fault, [[stretch.start, stretch.end]], holders)

    def _say_gap(self, start: int, end: int) -> None:
        """Of every attempt that should have fed a part of it."""
        batch = self.feed.plan.global_batch_size
        first, last = ((p - num_positions(below(self.quarantine, p))) // batch + 1 for p in (start, end - 1))
        for span in self.spans:
            steps = np.arange(max(first, span.first), min(last, span.last) + 1)
            if not len(steps):
                continue
            planned = [step_positions(int(step) - 1, batch, span.quarantine) for step in (steps[0], steps[-1])]
            bounds = [[max(start, int(planned[0][0])), min(end, int(planned[1][-1]) + 1)]]
            self._say("gap", steps, span.attempt, self._why_missing(span.attempt, steps), bounds)

    def _why_missing(self, attempt: int, steps: Int64) -> str:
        missing = steps[self.line_of[steps] < 0]
        if not len(missing):
            return f"{steps_named(ranges_of(steps))} of attempt {attempt} was fed others"
        text = f"the ledger has no line of attempt {attempt} for {steps_named(ranges_of(missing))}"
        others = np.unique(self.table.attempts[self.repeated[np.isin(self.table.steps[self.repeated], missing)]])
        if len(others):
            earlier = ", ".join(map(str, others))
            text += f"; that of attempt {earlier} does not count, since a later attempt began before it"
        return text

    def _say_fed(self, fault: Literal["repeat", "quarantined"], bounds: list[list[int]], holders: Int64) -> None:
        """`holders` are the lines that say they were fed it; the finding is about those of them that should not."""
        attempts, steps = self.table.attempts[holders], self.table.steps[holders]
        by = [f"{steps_named(ranges_of(np.unique(steps[attempts == a])))} of attempt {a}" for a in np.unique(attempts)]
        text = "by " + " and ".join(by)
        if np.isin(holders, self.again).any():
            text += ", which the ledger has more than once"
        guilty = np.intersect1d(holders, np.concatenate([self.again, *self.misplaced]))
        if not len(guilty):
            guilty = holders[[int(steps.argmax())]]
        of_guilty = np.unique(self.table.attempts[guilty])
        attempt = int(of_guilty[0]) if len(of_guilty) == 1 else None
        self._say(fault, np.sort(self.table.steps[guilty]), attempt, text, bounds)

    def _say(
        self,
        kind: Kind,
        steps: Sequence[int] | Int64,
        attempt: int | None,
        text: str,
        ranges: list[list[int]],
        ranks: tuple[int, ...] = (),
    ) -> None:
        """At the first to the last of `steps`."""
        self.findings.append(Finding(kind, int(steps[0]), int(steps[-1]), attempt, text, ranges, ranks))
