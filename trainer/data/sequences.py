"""The sequences of one split as ranks read them, over memory-mapped tables: concatenated documents, or packed ones.

In both, the input at a place is the token that comes before the label in the corpus, so a document starts from the EOS of the one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zerofleet.trainer.data.curriculum import ranks_by_length

Int64 = NDArray[np.int64]

IGNORED_LABEL = -100
"""Label of padding: cross-entropy leaves it out."""


class SequenceStore:
    """Documents one after the other. Sequence i is tokens [iL, iL + L + 1): L inputs, and the same shifted by one as labels.

    Every token but the first is a target exactly once; the last sequence may be short and is then padded.
    """

    def __init__(self, tokens: NDArray[Any], document_ends: Int64, sequence_length: int) -> None:
        self.document_ends = document_ends
        self.sequence_length = sequence_length
        self.num_tokens = len(tokens)
        self._num_all_targets = max(0, len(tokens) - 1)
        self.num_sequences = -(-self._num_all_targets // sequence_length)
        self.source_sizes: tuple[int, ...] = (self.num_sequences,)
        num_full = self._num_all_targets // sequence_length
        # A view of the memory map, a row of inputs and last label per full sequence: a batch is then one gather, with no loop in Python.
        shape, strides = (num_full, sequence_length + 1), (sequence_length * tokens.strides[0], tokens.strides[0])
        self._rows = np.lib.stride_tricks.as_strided(tokens, shape, strides, writeable=False)
        self._rest = tokens[num_full * sequence_length :]

    def num_targets(self, indices: Int64) -> Int64:
        """Real target tokens of each sequence, from the counts alone. IndexError outside [0, num_sequences)."""
        self._check(indices)
        return np.minimum(self.sequence_length, self._num_all_targets - indices * self.sequence_length)

    def read(self, indices: Int64) -> tuple[Int64, Int64]:
        """Input ids and labels, int64 [len(indices), L]; padding has input id 0 and label -100."""
        self._check(indices)
        short = indices >= len(self._rows)
        if not short.any():
            rows = self._rows[indices]
            return rows[:, :-1].astype(np.int64), rows[:, 1:].astype(np.int64)
        input_ids = np.zeros((len(indices), self.sequence_length), dtype=np.int64)
        labels = np.full_like(input_ids, IGNORED_LABEL)
        rows = self._rows[indices[~short]]
        input_ids[~short], labels[~short] = rows[:, :-1], rows[:, 1:]
        input_ids[short, : len(self._rest) - 1] = self._rest[:-1]
        labels[short, : len(self._rest) - 1] = self._rest[1:]
        return input_ids, labels

    def position_ids(self, indices: Int64) -> Int64:
        """Where each label lies in its document, int64 [len(indices), L]: from 0 again wherever a document, a part of one, or padding
        begins. O(log documents) per sequence."""
        self._check(indices)
        # A document's first label follows the end of the one before; padding follows the end of the last.
        first_labels = indices * self.sequence_length + 1
        low = np.searchsorted(self.document_ends, first_labels)
        high = np.searchsorted(self.document_ends, first_labels + self.sequence_length)
        rows, ends = _spread(low, high - low)
        starts = self.document_ends[ends] - first_labels[rows] + rows * self.sequence_length
        row_starts = np.arange(len(indices)) * self.sequence_length
        return self._from_starts(np.concatenate([row_starts, starts]), len(indices))

    def pieces_of(self, indices: Int64) -> tuple[Int64, Int64]:
        """The pieces of documents that the sequences are made of, numbered from the first sequence on, and the place where each begins,
        counted through all rows: what comes before it is not its first input. A sequence of concatenated documents is one piece."""
        self._check(indices)
        return indices, np.arange(len(indices)) * self.sequence_length

    def _from_starts(self, starts: Int64, num_rows: int) -> Int64:
        """Position ids that begin at the given places, counted through all rows; each row's first place must be among them."""
        begun = np.zeros(num_rows * self.sequence_length, np.int64)
        begun[starts] = starts
        positions = np.arange(len(begun)) - np.maximum.accumulate(begun)
        return positions.reshape(num_rows, self.sequence_length)

    def _check(self, indices: Int64) -> None:
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.num_sequences:
            raise IndexError(
                f"sequences {indices.min()} to {indices.max()} asked for, of a store that holds {self.num_sequences}"
            )


class PackedStore(SequenceStore):
    """Sequences of pieces of documents (packing.py), each padded at its end. Every token is a target exactly once."""

    def __init__(
        self,
        tokens: NDArray[Any],
        document_ends: Int64,
        sequence_length: int,
        pieces: NDArray[Any],
        sequences: NDArray[Any],
        source_sizes: Sequence[int] = (),
    ) -> None:
        """`pieces` and `sequences` are tables of packing.PIECE and packing.SEQUENCE; `source_sizes` are the sequences of each source
        of a mixture, which follow each other."""
        super().__init__(tokens, document_ends, sequence_length)
        self._tokens, self._pieces, self._sequences = tokens, pieces, sequences
        self.num_sequences = len(sequences)
        self.source_sizes = tuple(source_sizes) or (len(sequences),)

    @cached_property
    def by_length(self) -> tuple[Int64, ...]:
        """Of each source its samples by length, for a curriculum: 8 bytes per sequence, made when first asked for."""
        ends = np.cumsum(self.source_sizes)[:-1]
        return tuple(
            ranks_by_length(part["num_tokens"], part["num_pieces"]) for part in np.split(self._sequences, ends)
        )

    def num_targets(self, indices: Int64) -> Int64:
        self._check(indices)
        return self._sequences["num_tokens"][indices].astype(np.int64)

    def read(self, indices: Int64) -> tuple[Int64, Int64]:
        self._check(indices)
        pieces, starts = self.pieces_of(indices)
        found = self._pieces[pieces]
        first_tokens, lengths = found["start"], found["num_tokens"]
        labels = np.zeros(len(indices) * self.sequence_length, dtype=np.int64)
        # A copy per piece: a gather of single tokens would take ten times as long, and is the faster only where pieces are of some 30.
        for token, place, length in zip(first_tokens.tolist(), starts.tolist(), lengths.tolist(), strict=True):
            labels[place : place + length] = self._tokens[token : token + length]
        input_ids = np.empty_like(labels)
        input_ids[1:] = labels[:-1]
        # The corpus' first token wraps around to its last one, an EOS, so it starts like every document.
        input_ids[starts] = self._tokens.take(first_tokens - 1, mode="wrap")
        shape = (len(indices), self.sequence_length)
        input_ids, labels = input_ids.reshape(shape), labels.reshape(shape)
        num_tokens = self._sequences["num_tokens"][indices]
        for row in np.flatnonzero(num_tokens < self.sequence_length):
            input_ids[row, num_tokens[row] :] = 0
            labels[row, num_tokens[row] :] = IGNORED_LABEL
        return input_ids, labels

    def position_ids(self, indices: Int64) -> Int64:
        """As above, in O(1) per sequence and piece."""
        self._check(indices)
        num_tokens = self._sequences["num_tokens"][indices]
        rows = np.flatnonzero(num_tokens < self.sequence_length)
        padding = rows * self.sequence_length + num_tokens[rows]
        return self._from_starts(np.concatenate([self.pieces_of(indices)[1], padding]), len(indices))

    def pieces_of(self, indices: Int64) -> tuple[Int64, Int64]:
        self._check(indices)
        found = self._sequences[indices]
        rows, pieces = _spread(found["first_piece"], found["num_pieces"])
        lengths = self._pieces["num_tokens"][pieces].astype(np.int64)
        padding_before = np.arange(len(indices)) * self.sequence_length
        padding_before[1:] -= np.cumsum(found["num_tokens"][:-1], dtype=np.int64)
        return pieces, np.cumsum(lengths) - lengths + padding_before[rows]


def _spread(firsts: Int64, counts: NDArray[Any]) -> tuple[Int64, Int64]:
    """The elements of the ranges [first, first + count), one range after the other, and the range that each is of."""
    ranges = np.repeat(np.arange(len(firsts)), counts)
    before = np.cumsum(counts, dtype=np.int64) - counts
    return ranges, np.arange(len(ranges)) + (firsts - before)[ranges]
