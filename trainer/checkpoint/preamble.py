"""The first page of a snapshot buffer: what the file holds, where, and whether it is whole. Knows nothing of fragments.

    0  magic, with the version of this layout        8 bytes
    8  state: `filling` or `complete`                8 bytes
    16 attempt, step                                 2 x 8 bytes
    32 bytes of the description                      8 bytes
    40 offset and bytes of the payload               2 x 8 bytes
    56 xxh3-64 of the description                    8 bytes
    64 seal: xxh3-64 of all before it but the state  8 bytes
    80 the payload's digest, when it is known: the seal of the snapshot that it is of, and an xxh3-128
    128 the description

Memory that outlives processes also outlives versions of this program, and may be damaged like a disk: whatever is not
exactly what a rank wrote is told apart from what is merely not there.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

import xxhash

from zerofleet.trainer.checkpoint.format import DamagedFile

DESCRIPTION_AT = 128
_FAMILY = b"ZFSNAP"
_MAGIC = _FAMILY + b"02"
_FILLING, _COMPLETE = b"filling\0", b"complete"
_FIELDS = struct.Struct("<6Q")
_SEAL = struct.Struct("<Q")
_STATE_AT, _FIELDS_AT = 8, 16
_SEAL_AT = _FIELDS_AT + _FIELDS.size
_NUM_BYTES = _SEAL_AT + _SEAL.size
_DIGEST_SEAL_AT, _DIGEST_AT, _DIGEST_BYTES = 80, 88, 16


@dataclass(frozen=True)
class Preamble:
    """Of a snapshot that is whole, or will be."""

    attempt: int
    step: int
    description_bytes: int
    offset: int
    """Of the payload."""
    size: int
    """Of the payload, bytes."""
    description_digest: int

    @property
    def seal(self) -> int:
        """Guards the numbers, and tells this snapshot from any other that the buffer held."""
        return xxhash.xxh3_64_intdigest(_MAGIC + self._packed())

    def write(self, file: int, is_complete: bool) -> None:
        """First without `is_complete`, before anything else of the snapshot: nothing is known of its payload then."""
        if not is_complete:
            os.pwrite(file, bytes(_SEAL.size), _DIGEST_SEAL_AT)
        state = _COMPLETE if is_complete else _FILLING
        os.pwrite(file, _MAGIC + state + self._packed() + _SEAL.pack(self.seal), 0)

    def write_digest(self, file: int, digest: str) -> None:
        """Of the payload. Where there is one already it stays: it was computed when less could have happened to the bytes."""
        if self.read_digest(file) is None:
            os.pwrite(file, bytes.fromhex(digest), _DIGEST_AT)
            os.pwrite(file, _SEAL.pack(self.seal), _DIGEST_SEAL_AT)  # last: now it counts

    def read_digest(self, file: int) -> str | None:
        """None when nobody has computed it yet."""
        data = os.pread(file, _SEAL.size + _DIGEST_BYTES, _DIGEST_SEAL_AT)
        return data[_SEAL.size :].hex() if data[: _SEAL.size] == _SEAL.pack(self.seal) else None

    def _packed(self) -> bytes:
        fields = (self.attempt, self.step, self.description_bytes, self.offset, self.size, self.description_digest)
        return _FIELDS.pack(*fields)


def read_preamble(file: int) -> Preamble | None:
    """None when nothing whole was ever in the file, or it is being filled. Raises DamagedFile."""
    try:
        data, num_bytes = os.pread(file, _NUM_BYTES, 0), os.fstat(file).st_size
    except OSError as error:
        raise DamagedFile(f"it cannot be read ({error})") from error
    if not any(data):
        return None
    magic, state = data[:_STATE_AT], data[_STATE_AT:_FIELDS_AT]
    if magic != _MAGIC:
        whose = "another version of zerofleet" if magic.startswith(_FAMILY) else "something else"
        raise DamagedFile(f"{whose} wrote it: it begins with {magic!r}, not with {_MAGIC!r}")
    if len(data) < _NUM_BYTES:
        raise DamagedFile(f"it was cut short to {len(data)} bytes")
    if state == _FILLING:
        return None
    preamble = Preamble(*_FIELDS.unpack_from(data, _FIELDS_AT))
    if state != _COMPLETE or _SEAL.unpack_from(data, _SEAL_AT) != (preamble.seal,):
        raise DamagedFile("its first page does not match its own hash")
    if num_bytes < preamble.offset + preamble.size:
        raise DamagedFile(f"it was cut short: it has {num_bytes} of {preamble.offset + preamble.size} bytes")
    return preamble


def read_description(file: int, preamble: Preamble) -> bytes:
    """Raises DamagedFile."""
    text = os.pread(file, preamble.description_bytes, DESCRIPTION_AT)
    if xxhash.xxh3_64_intdigest(text) != preamble.description_digest:
        raise DamagedFile("its description does not match its hash")
    return text
