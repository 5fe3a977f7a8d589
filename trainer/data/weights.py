"""A mixture's weights as whole numbers: what its schedule repeats after. Light, so that a recipe is checked before anything starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from zerofleet.trainer.errors import UserError

MAX_PERIOD = 100_000
"""Positions after which a schedule must repeat: a tenth of a second of work at the start."""


def turns_of(weights: Mapping[str, float]) -> dict[str, int]:
    """How many positions of each period are each source's, names ascending.

    Raises UserError when the weights have no period of at most MAX_PERIOD positions.
    """
    names = sorted(weights)
    exact = [Fraction(str(weights[name])) for name in names]  # 0.1 is a tenth, not what is nearest to it in binary
    common = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * common) for weight in exact]
    counts = [count // math.gcd(*whole) for count in whole]
    if sum(counts) > MAX_PERIOD:
        raise UserError(
            f"the weights of data.sources ({', '.join(str(weights[name]) for name in names)}) are to each other as {':'.join(map(str, counts))}: "
            f"a mixture repeats after {sum(counts)} samples then, and {MAX_PERIOD} are the most. Round them"
        )
    return dict(zip(names, counts, strict=True))
