"""Bytes that only the holder of a key can tell from chance: ChaCha20 under keys that HKDF-SHA256 (RFC 5869) derives, a key of its own
for every purpose, round and parameter. The same key gives the same bytes, wherever a parameter is cut."""

from __future__ import annotations

import json

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
_BLOCK_BYTES = 64


def derived(key: bytes, *purpose: str | int) -> bytes:
    """A key of 32 bytes for one purpose."""
    info = json.dumps(["zerofleet.silos", *purpose]).encode()
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=info).derive(key)


def keystream(key: bytes, first_byte: int, num_bytes: int, *purpose: str | int) -> bytes:
    """Bytes [first_byte, first_byte + num_bytes) of a purpose's stream, whose 256 GiB are ChaCha20's counter: any part of it is had at once."""
    first_block, skipped = divmod(first_byte, _BLOCK_BYTES)
    # The rest of the nonce may be constant, since no two streams have the same key.
    start = first_block.to_bytes(4, "little") + bytes(12)
    cipher = Cipher(algorithms.ChaCha20(derived(key, *purpose), start), mode=None)
    return cipher.encryptor().update(bytes(skipped + num_bytes))[skipped:]
