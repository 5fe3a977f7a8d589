"""How a delta's chunk is written down to travel: fp32, bf16, 8 or 4 bits, and what a sender does about the bits that it leaves out.

int8 and int4 are block-wise absmax quantisation (Dettmers et al., "8-bit Optimizers via Block-wise Quantization", ICLR 2022, section 2.1, with
evenly spaced levels): each block of a chunk has one fp32 scale = its largest magnitude / levels, and each element is the nearest whole
multiple of it. An outlier spoils the resolution of its own block only.

Everything is little-endian and depends on nothing but the values: the same chunk gives the same bytes everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from zerofleet.trainer.errors import UserError
from zerofleet.trainer.silos.chunks import Chunk
from zerofleet.trainer.silos.errors import UnusableDelta

Float32 = NDArray[np.float32]

_SMALLEST_SCALE = np.finfo(np.float32).tiny
"""Below it fp32 has fewer bits the smaller the number is: such blocks, with nothing above 1.5e-36, are sent as zeros."""
_BF16_INFINITY = 0x7F80


class Codec(Protocol):
    """How the values of one chunk become bytes and values again."""

    @property
    def name(self) -> str: ...

    def encoded_bytes(self, count: int) -> int:
        """Length of what `encode` makes of `count` values, in bytes."""
        ...

    def encode(self, values: Float32) -> bytes:
        """`values` [count]. Raises UnusableDelta where they are not finite."""
        ...

    def decode(self, data: bytes, count: int) -> Float32:
        """Values [count]. Raises UnusableDelta where `data` has another length than `count` values have. Not finite where `data` was damaged
        on purpose: whoever aggregates has to look."""
        ...


@dataclass(frozen=True)
class Fp32:
    """Bit for bit: 4 bytes an element."""

    name: str = "fp32"

    def encoded_bytes(self, count: int) -> int:
        return 4 * count

    def encode(self, values: Float32) -> bytes:
        check_finite(values)
        return values.astype("<f4", copy=False).tobytes()

    def decode(self, data: bytes, count: int) -> Float32:
        _check_length(self, data, count)
        return np.frombuffer(data, "<f4").astype(np.float32)


@dataclass(frozen=True)
class Bf16:
    """The upper half of fp32, rounded to nearest, ties to even: 2 bytes an element, a relative error of at most 2^-8."""

    name: str = "bf16"

    def encoded_bytes(self, count: int) -> int:
        return 2 * count

    def encode(self, values: Float32) -> bytes:
        check_finite(values)
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        # Half of the last place that stays, less one where that place is even: ties go to even.
        upper = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2")
        beyond = np.flatnonzero((upper & _BF16_INFINITY) == _BF16_INFINITY)
        if len(beyond):
            raise UnusableDelta(f"element {beyond[0]} is {values[beyond[0]]}: bf16 ends at 3.39e38")
        return upper.tobytes()

    def decode(self, data: bytes, count: int) -> Float32:
        _check_length(self, data, count)
        bits = np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)
        return bits.view(np.float32)


@dataclass(frozen=True)
class Int8:
    """One byte an element and a scale per 256: 8.125 bits. The error is at most half of the block's scale, 1/254 of its largest magnitude."""

    name: str = "int8"
    block: int = 256
    levels: int = 127

    def encoded_bytes(self, count: int) -> int:
        return 4 * _num_blocks(count, self.block) + count

    def encode(self, values: Float32) -> bytes:
        scales, codes = _quantise(values, self.block, self.levels)
        return scales.astype("<f4").tobytes() + codes.tobytes()

    def decode(self, data: bytes, count: int) -> Float32:
        _check_length(self, data, count)
        num_blocks = _num_blocks(count, self.block)
        codes = np.frombuffer(data, np.int8, offset=4 * num_blocks)
        return _dequantise(np.frombuffer(data, "<f4", num_blocks), codes, self.block)


@dataclass(frozen=True)
class Int4:
    """Two elements a byte and a scale per 128: 4.25 bits. The error is at most half of the block's scale, 1/14 of its largest magnitude."""

    name: str = "int4"
    block: int = 128
    levels: int = 7

    def encoded_bytes(self, count: int) -> int:
        return 4 * _num_blocks(count, self.block) + (count + 1) // 2

    def encode(self, values: Float32) -> bytes:
        scales, codes = _quantise(values, self.block, self.levels)
        nibbles = np.full(2 * ((len(codes) + 1) // 2), 8, np.uint8)  # 8 is zero
        nibbles[: len(codes)] = codes + np.int8(8)
        return scales.astype("<f4").tobytes() + (nibbles[0::2] | (nibbles[1::2] << np.uint8(4))).tobytes()

    def decode(self, data: bytes, count: int) -> Float32:
        _check_length(self, data, count)
        num_blocks = _num_blocks(count, self.block)
        pairs = np.frombuffer(data, np.uint8, offset=4 * num_blocks)
        codes = np.empty(2 * len(pairs), np.int8)
        codes[0::2] = (pairs & np.uint8(0xF)).view(np.int8) - np.int8(8)
        codes[1::2] = (pairs >> np.uint8(4)).view(np.int8) - np.int8(8)
        return _dequantise(np.frombuffer(data, "<f4", num_blocks), codes[:count], self.block)


CODECS: Mapping[str, Codec] = {codec.name: codec for codec in (Fp32(), Bf16(), Int8(), Int4())}


def load_codec(name: str) -> Codec:
    """Raises UserError for a name that there is not."""
    if name not in CODECS:
        raise UserError(f"there is no codec {name!r} for deltas; there are {', '.join(CODECS)}")
    return CODECS[name]


class ErrorFeedback:
    """Adds to what a silo sends what its earlier messages left out, so that nothing is left out for good: the sum of all that was sent
    differs from the sum of all that was meant by the newest residual only, however many rounds there were (Seide et al., "1-Bit
    Stochastic Gradient Descent", Interspeech 2014; Karimireddy et al., "Error Feedback Fixes SignSGD", ICML 2019, algorithm 2).

    `residuals`, by chunk, take as much memory as the delta in fp32 and are state of the silo: whoever saves its checkpoint saves them too. They never
    leave the silo. A message that is lost on the way, or comes too late, is lost like any other delta; the residual stands for itself.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.residuals: dict[Chunk, Float32] = {}

    def encode(self, chunk: Chunk, values: Float32) -> bytes:
        """The message of a round for `values` [chunk.count]. Raises UnusableDelta where they are not finite, and then keeps the residual as it was."""
        residual = self.residuals.get(chunk)
        wanted = values if residual is None else values + residual
        data = self.codec.encode(wanted)
        self.residuals[chunk] = wanted - self.codec.decode(data, chunk.count)
        return data


def check_finite(values: Float32) -> None:
    """Raises UnusableDelta, naming the first element that is NaN or infinite."""
    if not np.isfinite(values).all():
        first = int(np.flatnonzero(~np.isfinite(values))[0])
        raise UnusableDelta(
            f"element {first} of {len(values)} is {values[first]}: deltas with NaN or infinity are not used"
        )


def _num_blocks(count: int, block: int) -> int:
    return -(-count // block)


def _quantise(values: Float32, block: int, levels: int) -> tuple[Float32, NDArray[np.int8]]:
    """Scales [blocks] and codes [count], from -levels to levels."""
    check_finite(values)
    padded = np.zeros((_num_blocks(len(values), block), block), np.float32)
    padded.reshape(-1)[: len(values)] = values
    peaks = np.abs(padded).max(axis=1, initial=0)
    scales = peaks / np.float32(levels)
    # Rounded down, so that no decoded value lies beyond the peak: beyond the largest one there is infinity.
    scales = np.where(scales.astype(np.float64) * levels > peaks, np.nextafter(scales, np.float32(0)), scales)
    scales[scales < _SMALLEST_SCALE] = 0
    inverses = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)
    padded *= inverses[:, None]
    codes = np.rint(padded, out=padded).astype(np.int8)
    return scales, codes.reshape(-1)[: len(values)]


def _dequantise(scales: NDArray[np.floating], codes: NDArray[np.int8], block: int) -> Float32:
    values: Float32 = codes.astype(np.float32)
    values *= np.repeat(scales.astype(np.float32), block)[: len(values)]
    return values


def _check_length(codec: Codec, data: bytes, count: int) -> None:
    if len(data) != codec.encoded_bytes(count):
        raise UnusableDelta(
            f"{count} elements in {codec.name} are {codec.encoded_bytes(count)} bytes, but {len(data)} came"
        )
