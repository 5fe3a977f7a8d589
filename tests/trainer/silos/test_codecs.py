"""Codecs: bounds of the error, the bytes that travel, what is refused, and what error feedback makes good."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from zerofleet.trainer.errors import UserError
from zerofleet.trainer.silos.chunks import Chunk
from zerofleet.trainer.silos.codecs import CODECS, ErrorFeedback, Int4, Int8, load_codec
from zerofleet.trainer.silos.errors import UnusableDelta

LARGEST = float(np.finfo(np.float32).max)
FROZEN = {
    "fp32": "cd5ec198455f719d",
    "bf16": "158ffcf9c3fd7b15",
    "int8": "52743096f909368e",
    "int4": "dd33183c9d4e24c3",
}
ANY = st.floats(-LARGEST, LARGEST, width=32)
VALUES = arrays.arrays(np.float32, st.integers(0, 600), elements=ANY, fill=ANY)
SMALL = arrays.arrays(np.float32, st.integers(1, 600), elements=st.floats(-0.125, 0.125, width=32))


def spread(count: int, seed: int = 0) -> np.ndarray:
    """Deltas as they are: many small, few large ones."""
    draw = np.random.default_rng(seed)
    return (draw.standard_normal(count) * 10 ** draw.uniform(-6, -1, count)).astype(np.float32)


@pytest.mark.parametrize("name", CODECS)
@given(SMALL)
def test_what_travels_has_the_length_that_was_said(name, values):
    codec = load_codec(name)
    data = codec.encode(values)
    decoded = codec.decode(data, len(values))
    assert len(data) == codec.encoded_bytes(len(values))
    assert decoded.dtype == np.float32 and decoded.shape == values.shape


@given(VALUES)
def test_fp32_is_bit_for_bit(values):
    decoded = load_codec("fp32").decode(load_codec("fp32").encode(values), len(values))
    assert decoded.tobytes() == values.tobytes()
    decoded += 1  # it is the receiver's own


@given(arrays.arrays(np.float32, st.integers(0, 600), elements=st.floats(-(2.0**127), 2.0**127, width=32)))
def test_bf16_rounds_as_torch_does(values):
    codec = load_codec("bf16")
    expected = torch.tensor(values).bfloat16().float().numpy()
    assert codec.decode(codec.encode(values), len(values)).tobytes() == expected.tobytes()


def test_bf16_ties_go_to_even():
    ties = np.uint32([0x3F808000, 0x3F818000, 0x3F808001]).view(np.float32)
    codec = load_codec("bf16")
    assert codec.decode(codec.encode(ties), 3).view(np.uint32).tolist() == [0x3F800000, 0x3F820000, 0x3F810000]


@pytest.mark.parametrize("codec", [Int8(), Int4()], ids=lambda codec: codec.name)
@given(VALUES)
@example(np.full(300, LARGEST, np.float32))
@example(np.float32([1e-45, 3e-39, -1e-38]))
@example(np.zeros(129, np.float32))
def test_the_error_is_half_a_scale_in_every_block(codec, values):
    decoded = codec.decode(codec.encode(values), len(values))
    assert np.isfinite(decoded).all()
    for start in range(0, len(values), codec.block):
        block = values[start : start + codec.block].astype(np.float64)
        error = np.abs(block - decoded[start : start + codec.block]).max()
        peak = np.abs(block).max()
        # A part in 10^4 for the roundings of fp32 on the way; blocks of nothing but tiny numbers are sent as zeros.
        assert error <= max(peak / codec.levels / 2 * 1.0001, min(peak, codec.levels * 1.2e-38))


@pytest.mark.parametrize("codec", [Int8(), Int4()], ids=lambda codec: codec.name)
def test_every_level_comes_back_as_it_is(codec):
    values = np.arange(-codec.levels, codec.levels + 1).astype(np.float32) / 8
    np.testing.assert_array_equal(codec.decode(codec.encode(values), len(values)), values)


@pytest.mark.parametrize("codec", [Int8(), Int4()], ids=lambda codec: codec.name)
def test_an_outlier_spoils_its_own_block_only(codec):
    values = spread(3 * codec.block)
    clean = codec.decode(codec.encode(values), len(values))
    values[codec.block] = 1e6
    spoilt = codec.decode(codec.encode(values), len(values))
    for block in (slice(0, codec.block), slice(2 * codec.block, None)):
        np.testing.assert_array_equal(clean[block], spoilt[block])


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_not_sent(name, wrong):
    values = spread(300)
    values[257] = wrong
    with pytest.raises(UnusableDelta, match=f"element 257 of 300 is {wrong}"):
        load_codec(name).encode(values)


def test_what_bf16_cannot_hold_is_not_sent():
    with pytest.raises(UnusableDelta, match=r"element 1 is 3\.4.*bf16 ends at 3\.39e38"):
        load_codec("bf16").encode(np.float32([3.3e38, LARGEST]))


@pytest.mark.parametrize("name", CODECS)
def test_a_message_of_the_wrong_length_is_not_used(name):
    codec = load_codec(name)
    data = codec.encode(spread(301))
    for damaged in (b"", data[:-1], data + b"\0"):
        with pytest.raises(
            UnusableDelta, match=f"301 elements in {name} are {len(data)} bytes, but {len(damaged)} came"
        ):
            codec.decode(damaged, 301)


def test_the_bytes_are_frozen():
    """Silos of different versions understand each other only as long as these stay."""
    values = ((np.arange(1000) * 2654435761 % 2**24 - 2**23) / 2**30).astype(np.float32)  # exact on every machine
    digests = {name: hashlib.sha256(codec.encode(values)).hexdigest()[:16] for name, codec in CODECS.items()}
    assert digests == FROZEN


def test_an_unknown_codec_is_refused():
    with pytest.raises(UserError, match="no codec 'int2' for deltas; there are fp32, bf16, int8, int4"):
        load_codec("int2")


@pytest.mark.parametrize("name", ["bf16", "int8", "int4"])
def test_error_feedback_leaves_nothing_out_for_good(name):
    """What was sent differs from what was meant by one residual, after 30 rounds as after one; without feedback it grows."""
    codec, count, rounds = load_codec(name), 500, 30
    chunk, feedback = Chunk("weight", 0, count), ErrorFeedback(codec)
    meant, sent, sent_without = np.zeros(count), np.zeros(count), np.zeros(count)
    steady = spread(count, seed=1)  # the same small push in every round is what rounding loses again and again
    for number in range(rounds):
        values = steady + spread(count, seed=2 + number)
        meant += values
        sent += codec.decode(feedback.encode(chunk, values), count)
        sent_without += codec.decode(codec.encode(values), count)
    np.testing.assert_allclose(meant - sent, feedback.residuals[chunk], atol=1e-5)
    assert np.linalg.norm(meant - sent) < 0.5 * np.linalg.norm(meant - sent_without)


def test_error_feedback_keeps_chunks_apart():
    feedback = ErrorFeedback(load_codec("int4"))
    first, second = Chunk("weight", 0, 8), Chunk("weight", 8, 8)
    values = spread(16)
    feedback.encode(first, values[:8])
    assert feedback.encode(second, values[8:]) == load_codec("int4").encode(values[8:])
    assert set(feedback.residuals) == {first, second}


def test_error_feedback_forgets_nothing_over_a_bad_delta():
    feedback, chunk = ErrorFeedback(load_codec("int4")), Chunk("weight", 0, 8)
    feedback.encode(chunk, spread(8))
    residual = feedback.residuals[chunk].copy()
    with pytest.raises(UnusableDelta):
        feedback.encode(chunk, np.full(8, np.nan, np.float32))
    np.testing.assert_array_equal(feedback.residuals[chunk], residual)
    assert residual.any()
