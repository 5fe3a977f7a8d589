"""What one silo delivers in a round, as its ranks' messages come in: each may come twice."""

from __future__ import annotations

import itertools
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zerofleet.cluster.outer.state import Arrays
from zerofleet.trainer.errors import ZerofleetError
from zerofleet.trainer.silos.chunks import Chunk, chunks_of
from zerofleet.trainer.silos.codecs import Codec
from zerofleet.trainer.silos.errors import UnusableDelta
from zerofleet.trainer.silos.fixed_point import MASKED
from zerofleet.trainer.silos.inspection import inspect
from zerofleet.trainer.silos.kernels import sum_of_squares
from zerofleet.trainer.storage import storage_errors

MOST_TOKENS = 2**53
"""Of a silo in a round: fp64, in which weights are added up, counts no further."""


class Parts:
    """Which elements have come, and which ranks have sent all of theirs."""

    def __init__(self, world_size: int, sizes: Mapping[str, int]) -> None:
        self._world_size, self._sizes = world_size, dict(sizes)
        self._taken: dict[str, dict[int, int]] = {name: {} for name in sizes}
        """By parameter: count by start."""
        self._done: set[int] = set()

    def admit(self, span: Sequence[Any]) -> Chunk:
        """Raises UnusableDelta for elements that there are not."""
        name, start, count = span
        if name not in self._sizes or start < 0 or count < 1 or start + count > self._sizes[name]:
            raise UnusableDelta(f"elements {start} to {start + count} of {name} are none of the model's")
        self._taken[name][start] = count
        return Chunk(name, start, count)

    def finish(self, rank: int) -> bool:
        """A rank has sent all. Whether every rank has. Raises UnusableDelta when an element is missing then, or came twice."""
        self._done.add(rank)
        if len(self._done) < self._world_size:
            return False
        for name, counts in self._taken.items():
            end = 0
            for start in sorted(counts):
                if start != end:
                    raise UnusableDelta(
                        f"element {min(start, end)} of {name} came {'twice' if start < end else 'never'}"
                    )
                end += counts[start]
            if end != self._sizes[name]:
                raise UnusableDelta(f"element {end} of {name} came never")
        return True


class Delivery:
    """A delta in the making: decoded, in a file without a name, so that memory does not grow with the number of silos."""

    def __init__(self, world_size: int, sizes: Mapping[str, int], codec: Codec | None) -> None:
        """Without a codec it is masked: words that nobody can look at. Raises StorageError where the temporary directory has no room."""
        self.tokens, self.num_bytes = 0, 0
        self._codec, self._parts, self._sizes = codec, Parts(world_size, sizes), dict(sizes)
        self._offsets = dict(zip(sizes, itertools.accumulate(sizes.values(), initial=0), strict=False))
        dtype = np.dtype(np.float32) if codec is not None else MASKED.dtype
        count, folder = sum(sizes.values()), tempfile.gettempdir()
        with storage_errors("making room for a delta in", folder, "TMPDIR"), tempfile.TemporaryFile() as file:
            # Now: a write to a mapping that finds the disk full would be a SIGBUS.
            os.posix_fallocate(file.fileno(), 0, count * dtype.itemsize)
            self._values: Any = np.asarray(np.memmap(file, dtype, "r+", shape=count))  # it keeps the file

    def take(self, rank: int, question: Mapping[str, Any], payload: bytearray) -> bool:
        """A rank's message. Whether the delta is whole. Raises UnusableDelta."""
        if why := question.get("unusable"):
            raise UnusableDelta(str(why))
        self.tokens, offset = _checked_tokens(question.get("tokens")), 0
        for *span, size in question["spans"]:
            chunk = self._parts.admit(span)
            self.read(chunk)[:] = self._decoded(bytes(payload[offset : offset + size]), chunk.count)
            offset += size
        self.num_bytes += offset
        return bool(question["is_last"]) and self._parts.finish(rank)

    def _decoded(self, data: bytes, count: int) -> Any:
        if self._codec is not None:
            values = self._codec.decode(data, count)
            inspect(values)
            return values
        if len(data) != MASKED.dtype.itemsize * count:
            raise UnusableDelta(f"{count} masked elements have {MASKED.dtype.itemsize * count} bytes, not {len(data)}")
        return np.frombuffer(data, MASKED.dtype)

    def read(self, chunk: Chunk) -> Any:
        """Where the values of a chunk are: fp32, or words."""
        start = self._offsets[chunk.name] + chunk.start
        return self._values[start : start + chunk.count]

    @property
    def norm(self) -> float:
        """L2 norm of the whole delta."""
        squares = (sum_of_squares(self.read(chunk)) for chunk in chunks_of(self._sizes))
        return math.sqrt(math.fsum(squares))


def _checked_tokens(tokens: Any) -> int:
    """What a delta counts by. Raises UnusableDelta: of one that counts nothing, or less, no mean can be taken when the round closes."""
    if type(tokens) is not int or not 1 <= tokens <= MOST_TOKENS:
        raise UnusableDelta(f"it claims {tokens!r} tokens: that is no whole number from 1 to {MOST_TOKENS}")
    return tokens


class Initial:
    """Initial weights in the making, of one attempt of one silo."""

    def __init__(self, silo: str, world_size: int, sizes: Mapping[str, int]) -> None:
        self.silo = silo
        self.arrays: Arrays = {name: np.zeros(size, np.float32) for name, size in sizes.items()}
        self._parts = Parts(world_size, sizes)

    def take(self, rank: int, question: Mapping[str, Any], payload: bytearray) -> bool:
        """A rank's message. Whether the weights are whole. Raises ZerofleetError."""
        offset = 0
        try:
            for span in question["spans"]:
                chunk = self._parts.admit(span)
                end = offset + 4 * chunk.count
                values = np.frombuffer(payload[offset:end], np.float32)
                self.arrays[chunk.name][chunk.start : chunk.start + chunk.count] = values
                offset = end
            return bool(question["is_last"]) and self._parts.finish(rank)
        except UnusableDelta as error:
            raise ZerofleetError(f"the initial weights of silo {self.silo} cannot be used: {error}") from error
