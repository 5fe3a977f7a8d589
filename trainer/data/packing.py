"""Which pieces of which documents share a sequence: best-fit packing. Pure.

No document is cut that fits into a sequence. A longer one is cut into full sequences and a rest, which is packed like a document;
then the longest piece that is left goes where it leaves the least room (Ding et al., "Fewer Truncations Improve Language
Modeling", ICML 2024, algorithm 1). What comes out depends on the documents' lengths and order and on nothing else.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

PIECE = np.dtype([("start", "<i8"), ("num_tokens", "<i4")])
"""A whole document or a part of one: where its tokens start in the split, and how many they are."""
SEQUENCE = np.dtype([("first_piece", "<i8"), ("num_pieces", "<i4"), ("num_tokens", "<i4")])
"""A sequence holds consecutive pieces; `num_tokens` is their sum, at most the sequence length."""

_WINDOW_DOCUMENTS = 2**20
_WINDOW_SEQUENCES = 2**20
"""Documents are packed in windows that hold no more of either: some 200 MB of memory at most, whatever the corpus' size
(a single document above the latter is a window of its own)."""


@dataclass(frozen=True)
class Rates:
    """How well documents fit into sequences."""

    fill: float
    """Share of the places in all sequences that hold a token."""
    truncation: float
    """Share of documents that lie in more than one sequence."""

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def packed(
    document_ends: Int64, sequence_length: int, first: int = 0, stop: int | None = None, num_pieces: int = 0
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Tables of PIECE and SEQUENCE for each window of the documents from `first` to `stop`, after `num_pieces` pieces of others.

    `document_ends` says where each document ends in the split's tokens, exclusive. Sequences are in the order of their first
    tokens in the corpus, and so are the pieces of each, so that the first sequences of a split are a fair sample of its beginning.
    """
    last = len(document_ends) if stop is None else stop
    while first < last:
        start = int(document_ends[first - 1]) if first else 0
        limit = start + _WINDOW_SEQUENCES * sequence_length
        end = int(np.searchsorted(document_ends, limit, side="right"))
        end = max(first + 1, min(end, first + _WINDOW_DOCUMENTS, last))
        pieces, sequences = _pack(np.concatenate([[start], document_ends[first:end]]), sequence_length)
        sequences["first_piece"] += num_pieces
        yield pieces, sequences
        first, num_pieces = end, num_pieces + len(pieces)


def _pack(bounds: Int64, sequence_length: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Documents [bounds[i], bounds[i + 1]) of one window."""
    starts, lengths = _cut(bounds, sequence_length)
    found = best_fit_decreasing(lengths, sequence_length)
    # Pieces ascend, so the index of a sequence's first piece is the order of its first token.
    _, first_pieces, sequence_of = np.unique(found, return_index=True, return_inverse=True)
    number = np.empty(len(first_pieces), np.int64)
    number[np.argsort(first_pieces)] = np.arange(len(first_pieces))
    sequence_of = number[sequence_of]
    order = np.argsort(sequence_of, kind="stable")
    pieces = np.empty(len(order), PIECE)
    pieces["start"], pieces["num_tokens"] = starts[order], lengths[order]
    sequences = np.empty(len(first_pieces), SEQUENCE)
    sequences["num_pieces"] = np.bincount(sequence_of)
    sequences["first_piece"] = np.cumsum(sequences["num_pieces"], dtype=np.int64) - sequences["num_pieces"]
    sequences["num_tokens"] = np.add.reduceat(lengths[order], sequences["first_piece"])
    return pieces, sequences


def _cut(bounds: Int64, sequence_length: int) -> tuple[Int64, Int64]:
    """Start and length of the pieces of all documents, ascending: full sequences, then what is left."""
    starts, lengths = bounds[:-1], np.diff(bounds)
    counts = -(-lengths // sequence_length)
    before = np.cumsum(counts) - counts
    piece_starts = np.arange(counts.sum()) - np.repeat(before, counts)
    piece_starts *= sequence_length
    piece_starts += np.repeat(starts, counts)
    piece_lengths = np.minimum(sequence_length, np.repeat(bounds[1:], counts) - piece_starts)
    return piece_starts, piece_lengths


def best_fit_decreasing(lengths: Int64, capacity: int) -> Int64:
    """A bin in [0, number of bins) for each item, by best-fit-decreasing; `lengths` are from 1 to `capacity`.

    Items of one length and bins of one room are alike, so they are dealt in bulk: O(n) for n items after sorting them by length, and at
    most O(capacity log capacity) rounds, however many the items are. (A bin is at least halved in room whenever a round fills it.)
    """
    order = np.argsort(-lengths, kind="stable")
    counts = np.bincount(lengths, minlength=1)
    bins = np.empty(len(lengths), np.int64)
    shelf = _Shelf()
    num_bins = done = 0
    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        while left:
            room = shelf.tightest(length)
            per_bin = (room or capacity) // length
            wanted = -(-left // per_bin)
            if room is None:
                room, taken = capacity, np.arange(num_bins, num_bins + wanted)
                num_bins += wanted
            else:
                taken = shelf.take(room, wanted)
            # The tightest fit stays the tightest until nothing of this length fits any more: it is filled before the next.
            num_items = min(left, len(taken) * per_bin)
            bins[order[done : done + num_items]] = np.repeat(taken, per_bin)[:num_items]
            num_filled, over = divmod(num_items, per_bin)
            shelf.put(room - per_bin * length, taken[:num_filled])
            shelf.put(room - over * length, taken[num_filled:])
            left, done = left - num_items, done + num_items
    return bins


class _Shelf:
    """Bins that are not full, by the room that they have left."""

    def __init__(self) -> None:
        self._rooms: list[int] = []  # ascending
        self._bins: dict[int, list[Int64]] = {}

    def tightest(self, length: int) -> int | None:
        """The least room that `length` fits into; None when it fits nowhere."""
        at = bisect.bisect_left(self._rooms, length)
        return self._rooms[at] if at < len(self._rooms) else None

    def put(self, room: int, bins: Int64) -> None:
        if room == 0 or len(bins) == 0:
            return
        if room not in self._bins:
            bisect.insort(self._rooms, room)
            self._bins[room] = []
        self._bins[room].append(bins)

    def take(self, room: int, wanted: int) -> Int64:
        """From 1 to `wanted` bins that have exactly this room."""
        batches = self._bins[room]
        bins = batches.pop()
        if len(bins) > wanted:
            batches.append(bins[wanted:])
        elif not batches:
            del self._bins[room]
            del self._rooms[bisect.bisect_left(self._rooms, room)]
        return bins[:wanted]


def rates_when_packed(document_ends: Int64, num_sequences: int, sequence_length: int) -> Rates:
    """Of best-fit packing: only documents longer than a sequence are cut."""
    num_tokens = int(document_ends[-1]) if len(document_ends) else 0
    num_cut = sum(int((np.diff(bounds) > sequence_length).sum()) for bounds in _windows_of_bounds(document_ends))
    return _rates(num_tokens, num_sequences * sequence_length, num_cut, len(document_ends))


def rates_when_concatenated(document_ends: Int64, sequence_length: int) -> Rates:
    """Of documents one after the other, cut wherever a sequence ends; the very first token is no target."""
    num_targets = int(document_ends[-1]) - 1 if len(document_ends) else 0
    num_cut = 0
    for bounds in _windows_of_bounds(document_ends):
        # Token t is a target of sequence (t - 1) // L.
        first, last = np.maximum(bounds[:-1], 1), np.maximum(bounds[1:] - 1, 1)
        num_cut += int(((first - 1) // sequence_length != (last - 1) // sequence_length).sum())
    num_sequences = -(-num_targets // sequence_length)
    return _rates(num_targets, num_sequences * sequence_length, num_cut, len(document_ends))


def _windows_of_bounds(document_ends: Int64) -> Iterator[Int64]:
    """Start of the first and end of every document, for as many documents at a time as fit into memory."""
    for first in range(0, len(document_ends), _WINDOW_DOCUMENTS):
        start = int(document_ends[first - 1]) if first else 0
        yield np.concatenate([[start], document_ends[first : first + _WINDOW_DOCUMENTS]])


def _rates(num_tokens: int, num_places: int, num_cut: int, num_documents: int) -> Rates:
    return Rates(num_tokens / num_places if num_places else 1.0, num_cut / num_documents if num_documents else 0.0)
