"""What a silo does to its delta before it leaves: clipped as a whole to an L2 norm, and Gaussian noise added (McMahan et al., "Learning
Differentially Private Recurrent Language Models", ICLR 2018, here with the noise at each silo).

What it protects: whoever sees all of a silo's messages, the aggregator included, can tell by them hardly better than (epsilon, delta)
allows whether the silo trained on this data or on any other. Neighbours differ in all of a silo's data, and both deltas are clipped, so the sensitivity is twice the
clipping norm; that covers single documents too. The number of tokens and when a silo takes part are not protected.

Clipping takes two passes over the chunks: the first sums up the norm, the second scales and adds noise. Noise comes before codec and error feedback, so
that what they do is post-processing. Known gap: the noise is made of floating-point numbers, whose last bits can tell more than the theory allows
(Mironov, "On Significance of the Least Significant Bits for Differential Privacy", CCS 2012).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from zerofleet.trainer.errors import UserError
from zerofleet.trainer.silos.chunks import Chunk
from zerofleet.trainer.silos.errors import UnusableDelta
from zerofleet.trainer.silos.kernels import sum_of_squares
from zerofleet.trainer.silos.keystream import keystream

Float32 = NDArray[np.float32]

_ROUNDING = 1e-6
"""Share of the norm that is given up, so that rounding to fp32 cannot bring it above the limit again."""


def norm_of(chunks: Iterable[Float32]) -> float:
    """L2 norm of a whole delta, given chunk by chunk: the first pass. Raises UnusableDelta where an element is not finite."""
    squares = math.fsum(sum_of_squares(values) for values in chunks)
    if not math.isfinite(squares):
        raise UnusableDelta("the delta has an element that is NaN or infinite: its norm cannot be clipped")
    return math.sqrt(squares)


def clip_factor(norm: float, clip_norm: float) -> float:
    """What every element is multiplied by, so that the norm is at most `clip_norm`."""
    return min(1.0, clip_norm / (norm * (1 + _ROUNDING))) if norm else 1.0


def privatised(
    values: Float32, chunk: Chunk, factor: float, noise_std: float, key: bytes, round_number: int
) -> Float32:
    """A chunk's values [count] as they leave the silo: the second pass. `noise_std` is noise multiplier x clipping norm.

    The noise of an element is a function of key, round and its place in the parameter. A silo that is asked again, or restarts on other nodes, adds the same;
    fresh noise each time would average out. The key (32 bytes) is the silo's secret: whoever has it can take the noise off.
    """
    noise = standard_normal(chunk.start, chunk.count, key, "noise", round_number, chunk.name)
    return (values * np.float64(factor) + noise * noise_std).astype(np.float32)


@dataclass(frozen=True)
class Noise:
    """Clipping and noise of one silo in one round."""

    factor: float
    std: float
    key: bytes = field(repr=False)
    round_number: int

    def put_on(self, values: Float32, chunk: Chunk) -> Float32:
        return privatised(values, chunk, self.factor, self.std, self.key, self.round_number)


def standard_normal(start: int, count: int, key: bytes, *purpose: str | int) -> NDArray[np.float64]:
    """Draws [start, start + count) of a keyed stream from N(0, 1), by Box & Muller (1958): no generator that a few outputs give away."""
    first_pair, end_pair = start // 2, (start + count + 1) // 2
    words = np.frombuffer(keystream(key, 16 * first_pair, 16 * (end_pair - first_pair), *purpose), "<u8")
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53  # never 0, whose logarithm is infinite
    radius = np.sqrt(-2 * np.log(uniform[0::2]))
    angle = 2 * np.pi * uniform[1::2]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return pairs.reshape(-1)[start - 2 * first_pair :][:count]


def epsilon_of(noise_multiplier: float, num_rounds: int, delta: float) -> float:
    """Epsilon, at `delta`, of a silo that has sent `num_rounds` deltas with noise of `noise_multiplier` x its clipping norm.

    By Google's dp-accounting: the exact curve of the Gaussian mechanism (Balle & Wang, ICML 2018), of which several in a row are one with a
    noise smaller by the root of their number (Dong, Roth & Su, "Gaussian Differential Privacy", 2022, corollary 3.3). A test compares
    with the library's own accountant, which takes up to a minute where epsilon is large.
    """
    try:
        from dp_accounting import get_epsilon_gaussian
    except ImportError as error:
        raise UserError(
            "privacy needs the accountant of the package dp-accounting: pip install 'zerofleet[silos]'"
        ) from error
    if not (noise_multiplier > 0 and 0 < delta < 1):
        raise UserError(
            f"no epsilon for noise_multiplier={noise_multiplier} and delta={delta}: noise must be above 0, delta between 0 and 1"
        )
    if not num_rounds:
        return 0.0
    sensitivity = 2.0  # in clipping norms: one delta replaced by another
    return float(get_epsilon_gaussian(noise_multiplier / sensitivity / math.sqrt(num_rounds), delta))
