"""Sequences are what the documents say: every token is a target once, its input is what comes before it, and positions start again."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerofleet.trainer.data.packing import PIECE, SEQUENCE, packed
from zerofleet.trainer.data.sequences import IGNORED_LABEL, PackedStore, SequenceStore


def store(num_tokens: int, sequence_length: int, dtype: str = "<u2") -> SequenceStore:
    tokens = (np.arange(num_tokens) * 7 % 60000).astype(dtype)
    return SequenceStore(tokens, np.array([num_tokens]), sequence_length)


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_a_sequence_and_its_labels(dtype):
    sequences = store(11, 4, dtype)  # 10 targets: two full sequences and one of 2
    assert sequences.num_sequences == 3
    input_ids, labels = sequences.read(np.array([2, 0]))
    assert input_ids.dtype == labels.dtype == np.int64
    assert input_ids.tolist() == [[56, 63, 0, 0], [0, 7, 14, 21]]
    assert labels.tolist() == [[63, 70, IGNORED_LABEL, IGNORED_LABEL], [7, 14, 21, 28]]
    assert sequences.num_targets(np.array([2, 0, 1])).tolist() == [2, 4, 4]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 60), st.integers(2, 9))
def test_every_token_but_the_first_is_a_target_once(num_tokens, sequence_length):
    sequences = store(num_tokens, sequence_length)
    indices = np.arange(sequences.num_sequences)
    input_ids, labels = sequences.read(indices)
    assert input_ids.shape == labels.shape == (sequences.num_sequences, sequence_length)
    assert labels[labels != IGNORED_LABEL].tolist() == [i * 7 for i in range(1, num_tokens)]
    assert input_ids[labels != IGNORED_LABEL].tolist() == [i * 7 for i in range(num_tokens - 1)]
    assert np.array_equal((labels != IGNORED_LABEL).sum(axis=1), sequences.num_targets(indices))
    assert (sequences.num_targets(indices) > 0).all()


def test_a_sequence_that_is_not_there_is_refused():
    for indices in ([3], [-1], [0, 99]):
        with pytest.raises(IndexError, match="holds 3"):
            store(11, 4).read(np.array(indices))
        with pytest.raises(IndexError, match="holds 3"):
            store(11, 4).num_targets(np.array(indices))
    assert store(11, 4).read(np.empty(0, np.int64))[0].shape == (0, 4)


def tokens_of(lengths: list[int]) -> np.ndarray:
    """A document's tokens count up from 1000 times its number and end with 7, an EOS."""
    documents = [[*range(1000 * number, 1000 * number + length - 1), 7] for number, length in enumerate(lengths, 1)]
    return np.array([*itertools.chain(*documents)], dtype="<u2")


def packed_store(lengths: list[int], sequence_length: int) -> PackedStore:
    ends = np.cumsum(lengths)
    windows = list(packed(ends, sequence_length))
    pieces, sequences = (np.concatenate(tables) for tables in zip(*windows, strict=True))
    return PackedStore(tokens_of(lengths), ends, sequence_length, pieces, sequences)


def test_a_packed_sequence_and_its_labels():
    sequences = packed_store([3, 6, 2], 4)  # 6 is cut into 4 and 2; the rest shares a sequence with the last document
    assert sequences.num_sequences == 3
    input_ids, labels = sequences.read(np.array([2, 0, 1]))
    assert input_ids.dtype == labels.dtype == np.int64
    assert labels.tolist() == [[2004, 7, 3000, 7], [1000, 1001, 7, IGNORED_LABEL], [2000, 2001, 2002, 2003]]
    assert input_ids.tolist() == [[2003, 2004, 7, 3000], [7, 1000, 1001, 0], [7, 2000, 2001, 2002]]
    assert sequences.num_targets(np.array([2, 0, 1])).tolist() == [4, 3, 4]
    assert sequences.position_ids(np.array([2, 0, 1])).tolist() == [[0, 1, 0, 1], [0, 1, 2, 0], [0, 1, 2, 3]]


LENGTHS = st.lists(st.integers(2, 20), min_size=1, max_size=40)


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(2, 9), st.randoms())
def test_every_token_is_a_target_once_after_what_comes_before_it(lengths, sequence_length, draw):
    sequences, tokens = packed_store(lengths, sequence_length), tokens_of(lengths)
    indices = np.arange(sequences.num_sequences)
    draw.shuffle(indices)
    input_ids, labels = sequences.read(indices)
    real = labels != IGNORED_LABEL
    assert np.array_equal(real.sum(axis=1), sequences.num_targets(indices)) and real[:, 0].all()
    assert (np.diff(real.astype(int), axis=1) <= 0).all(), "padding comes last"
    assert (input_ids[~real] == 0).all()
    pairs = zip(input_ids[real].tolist(), labels[real].tolist(), strict=True)
    assert sorted(pairs) == sorted(zip(np.roll(tokens, 1).tolist(), tokens.tolist(), strict=True))


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(2, 9), st.booleans())
def test_positions_start_again_with_every_document_and_only_there(lengths, sequence_length, is_packed):
    if is_packed:
        sequences: SequenceStore = packed_store(lengths, sequence_length)
    else:
        sequences = SequenceStore(tokens_of(lengths), np.cumsum(lengths), sequence_length)
    indices = np.arange(sequences.num_sequences)[::-1]
    input_ids, labels = sequences.read(indices)
    expected = []
    for row_inputs, row_labels in zip(input_ids, labels, strict=True):
        positions: list[int] = []
        for place, (before, label) in enumerate(zip(row_inputs, row_labels, strict=True)):
            # A label of another document than its neighbour's, or the first place of padding.
            other = place and (before == 7 or before != row_labels[place - 1])
            padding = label == IGNORED_LABEL and place and row_labels[place - 1] != IGNORED_LABEL
            goes_on = place and not padding and (label == IGNORED_LABEL or not other)
            positions.append(positions[-1] + 1 if goes_on else 0)
        expected.append(positions)
    assert sequences.position_ids(indices).tolist() == expected


def test_a_packed_sequence_that_is_not_there_is_refused():
    sequences = packed_store([3, 6, 2], 4)
    for ask in (sequences.read, sequences.num_targets, sequences.position_ids):
        with pytest.raises(IndexError, match="holds 3"):
            ask(np.array([3]))
        assert len(ask(np.empty(0, np.int64))) in (0, 2)


def test_pieces_may_lie_anywhere_in_the_corpus():
    sequences = np.zeros(3, SEQUENCE)
    sequences["first_piece"], sequences["num_pieces"], sequences["num_tokens"] = [0, 1, 3], [1, 2, 1], [4, 4, 4]
    pieces = np.array([(8, 4), (0, 1), (5, 3), (1, 4)], PIECE)
    store = PackedStore(np.arange(12, dtype="<u4"), np.array([12]), 4, pieces, sequences)
    assert store.read(np.array([2, 0, 1]))[1].tolist() == [[1, 2, 3, 4], [8, 9, 10, 11], [0, 5, 6, 7]]
