"""What a silo sends and cannot be used."""

from __future__ import annotations

from zerofleet.trainer.errors import ZerofleetError


class UnusableDelta(ZerofleetError):
    """A delta, or a part of one, that must not reach the outer weights: damaged, not finite, or far from all others."""


class MaskingFailed(ZerofleetError):
    """Secure aggregation cannot go on in this round, or was asked for what would give a delta away."""
