"""A silo's privacy over its rounds: the secret that its noise comes from, and the record of every delta that it let out under noise.

The noise of a delta is a function of the silo's secret, the round and the *delta itself* (its HMAC), as deterministic signatures draw their nonce from the
message (RFC 6979). So a silo that is killed, or was not heard, and repeats its steps to the same bits sends the same message again: two noises
on one delta would average out. One that comes to other bits (on other nodes, with another world size) gets noise of its own: one noise on two deltas would
cancel in their difference. That is then one more message for the accountant, which counts the different ones. What is let out is written down, durably,
before the first byte of it is sent.

Nobody without the secret can tell the noise, the run's seed or not.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from zerofleet.trainer.config import PrivacyConfig
from zerofleet.trainer.errors import StorageError, UserError, ZerofleetError
from zerofleet.trainer.exchange import agree
from zerofleet.trainer.silos.kernels import sum_of_squares
from zerofleet.trainer.silos.keystream import KEY_BYTES, derived
from zerofleet.trainer.silos.outbox import Outbox
from zerofleet.trainer.silos.privacy import Noise, clip_factor, epsilon_of
from zerofleet.trainer.storage import Storage

KEY = "secrets/silo-key"
RELEASES = "releases"
"""Folder of a silo's run: one small file for every different delta that it let out, NUMBER-HMAC."""

_MEASURE = struct.Struct(f"<d{hashlib.sha256().digest_size}s")
"""What a rank says of its part of a delta: sum of squares, HMAC."""


@dataclass
class Privacy:
    """Of one rank; `open` and `measure` are collective."""

    config: PrivacyConfig
    storage: Storage
    """The silo's run folder."""
    key_file: str | None
    """Where the secret is kept, instead of the run folder."""
    rank: int
    device: torch.device
    _secret: bytes = b""
    _identity: str = ""
    _num_releases: int = 0

    def open(self) -> None:
        """Every rank knows the secret then; the first time it is made. Raises UserError and StorageError, on every rank."""
        found: list[Any] = [None]
        problem: Exception | None = None
        if self.rank == 0:
            try:
                found[0], self._num_releases = self._read_or_make(), self._count()
            except OSError as error:
                problem = UserError(f"the silo's secret cannot be had: {error}")
            except ZerofleetError as error:
                problem = error
        agree(problem)
        dist.broadcast_object_list(found, src=0, device=self.device)
        self._secret = found[0]

    def measure(self, outbox: Outbox, number: int) -> bool:
        """Gives the round's delta its clipping and its noise. False: it is not finite, and the outbox says so instead."""
        squares: list[float] = []
        digest = hmac.new(self._secret, digestmod="sha256")
        for chunk, values in outbox.deltas():
            digest.update(repr(tuple(chunk)).encode())
            digest.update(values.data)
            squares.append(sum_of_squares(values))
        mine = _MEASURE.pack(math.fsum(squares), digest.digest())
        gathered = torch.empty(dist.get_world_size() * _MEASURE.size, dtype=torch.uint8, device=self.device)
        dist.all_gather_single(gathered, torch.frombuffer(bytearray(mine), dtype=torch.uint8).to(self.device))
        parts = list(_MEASURE.iter_unpack(gathered.cpu().numpy().tobytes()))
        norm = (
            math.sqrt(math.fsum(part[0] for part in parts))
            if all(math.isfinite(part[0]) for part in parts)
            else math.nan
        )
        if not math.isfinite(norm):
            outbox.refuse("the delta has an element that is NaN or infinite: its norm cannot be clipped")
            return False
        whole = hmac.new(self._secret, repr(number).encode() + b"".join(part[1] for part in parts), "sha256")
        self._identity = f"{number:08d}-{whole.hexdigest()}"
        std = self.config.noise_multiplier * self.config.clip_norm
        outbox.noise = Noise(
            clip_factor(norm, self.config.clip_norm), std, derived(self._secret, self._identity), number
        )
        return True

    def note(self) -> None:
        """On rank 0, before anything of the delta is sent. Raises ConnectionError while storage does not take it."""
        try:
            with contextlib.suppress(FileExistsError):  # the same delta, once more
                self.storage.create(f"{RELEASES}/{self._identity}", b"released\n")
            self._num_releases = self._count()
        except StorageError as error:
            raise ConnectionError(f"the record of what this silo lets out: {error}") from error

    def spent(self) -> dict[str, float]:
        """What all messages so far have cost."""
        epsilon = epsilon_of(self.config.noise_multiplier, self._num_releases, self.config.delta)
        return {"epsilon": epsilon, "delta": self.config.delta, "releases": self._num_releases}

    def _count(self) -> int:
        return sum(not name.startswith(".") for name in self.storage.list(RELEASES))

    def _read_or_make(self) -> bytes:
        path = Path(self.key_file).expanduser() if self.key_file else self.storage.local_path(KEY)
        if not self.key_file and not path.exists():
            _make_secret(path)
        text = path.read_bytes()
        if len(text) < KEY_BYTES:
            raise UserError(f"the silo's secret in {path} has {len(text)} bytes: give {KEY_BYTES} random ones or more")
        return derived(text, "silo")


def _make_secret(path: Path) -> None:
    """Whole or not at all, and for nobody but its user. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}-{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.urandom(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
