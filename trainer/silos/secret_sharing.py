"""Secrets of 32 bytes in shares, any `threshold` of which give them back and fewer of which tell nothing (Shamir, "How to Share a Secret",
Communications of the ACM 1979), by PyCryptodome over GF(2^128): two halves of 16 bytes each."""

from __future__ import annotations

from collections.abc import Mapping

from Crypto.Protocol.SecretSharing import Shamir

SHARE_BYTES = 32
_HALF = 16


def split(secret: bytes, threshold: int, num_shares: int) -> list[bytes]:
    """Share i of the list (32 bytes) belongs to index i + 1. `secret` has 32 bytes; 2 <= threshold <= num_shares."""
    assert len(secret) == SHARE_BYTES and 2 <= threshold <= num_shares
    first, second = (Shamir.split(threshold, num_shares, half) for half in (secret[:_HALF], secret[_HALF:]))
    return [share + other for (_, share), (_, other) in zip(first, second, strict=True)]


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret, from exactly `threshold` shares by index. Fewer, or wrong ones, give 32 bytes that mean nothing: compare with what is known of the secret."""
    halves = [[(index, share[part]) for index, share in shares.items()] for part in (slice(_HALF), slice(_HALF, None))]
    return b"".join(Shamir.combine(half) for half in halves)
