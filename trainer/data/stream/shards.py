"""Shards on the node's disk: fetched ahead into a folder of bounded size that all ranks of the node share.

Ranks do not talk to each other here. A file lock per shard lets one of them fetch it, and goes with its holder however that ends; another
lock guards the folder's size. A shard is whole when it has its name, and its hash is looked at whenever a process opens it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zerofleet.trainer.data.stream.published import Entry, shard_path
from zerofleet.trainer.errors import DataError, StorageError, ZerofleetError
from zerofleet.trainer.storage import Storage, storage_errors

_FETCHES = 4
"""Shards that a process fetches at a time."""
_WHOLE, _PARTIAL, _LOCK = ".bin", ".tmp", ".lock"
_TRIES = 3
"""Of opening a shard that another process removes as soon as it is there."""


class ShardFolder:
    """The shards of a publication as arrays over memory maps, of which `max_bytes` are on the disk at most."""

    def __init__(
        self,
        storage: Storage,
        folder: Path,
        shards: Sequence[Entry],
        dtype: np.dtype[Any],
        max_bytes: int,
        setting: str = "data.cache",
    ) -> None:
        """`setting` says where the folder lies, for messages."""
        self._storage, self._folder, self._shards, self._dtype = storage, folder, shards, dtype
        self._max_bytes, self._setting = max_bytes, setting
        self._open: dict[int, NDArray[Any]] = {}
        self._wanted: frozenset[int] = frozenset()
        self._ahead: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        with self._errors("making", folder):
            folder.mkdir(parents=True, exist_ok=True)

    def want(self, shards: Sequence[int]) -> None:
        """Has these fetched in the background, in this order, and keeps them; others make room for them."""
        fresh = [shard for shard in shards if shard not in self._wanted]
        self._wanted = frozenset(shards)
        for shard in self._open.keys() - self._wanted:
            self._open.pop(shard, None)  # a removed file takes room for as long as it is mapped
        for shard in fresh:
            self._ahead.put(shard)
        if fresh and not self._threads:
            self._threads = [threading.Thread(target=self._fetch_ahead, daemon=True) for _ in range(_FETCHES)]
            for thread in self._threads:
                thread.start()

    def get(self, shard: int) -> NDArray[Any]:
        """A shard's tokens; it is fetched first where it is not there.

        Raises DataError when it is gone or another than was published, StorageError when storage cannot be reached or the disk is full.
        """
        for _ in range(_TRIES):
            if shard not in self._open:
                with self._lock(shard):
                    if not self._path(shard, _WHOLE).exists():
                        self._fetch(shard)
                # Another run may make room between these lines.
                with contextlib.suppress(FileNotFoundError):
                    self._map(shard)
            if (tokens := self._open.get(shard)) is not None:
                return tokens
        raise StorageError(
            f"{self._path(shard, _WHOLE)} was fetched {_TRIES} times, and removed or damaged each time before it could be opened: either other "
            f"runs share {self._folder} and its {self._max_bytes} bytes, or the disk is failing; set {self._setting} to another folder"
        )

    # -- inside ----------------------------------------------------------------------------------------------------
    def _fetch_ahead(self) -> None:
        while True:
            shard = self._ahead.get()
            if shard not in self._wanted:
                continue
            # What goes wrong here is for whoever needs the shard, who fetches it again and says so.
            with contextlib.suppress(ZerofleetError, BlockingIOError), self._lock(shard, wait=False):
                if not self._path(shard, _WHOLE).exists():
                    self._fetch(shard)

    def _fetch(self, shard: int) -> None:
        """With its lock held."""
        entry, partial = self._shards[shard], self._path(shard, _PARTIAL)
        name = shard_path(shard)
        try:
            data = self._storage.read(name)
        except FileNotFoundError:
            raise DataError(
                f"shard {shard} of {len(self._shards)} has disappeared: {self._storage.path(name)} was there when the corpus was "
                f"published ({entry.num_bytes} bytes). Put it back, or publish the same corpus again, and resume the run: it goes on where it was"
            ) from None
        if wrong := entry.difference(data):
            raise DataError(
                f"shard {shard} of {len(self._shards)} is not what was published: {self._storage.path(name)} changed ({wrong}). "
                "Put back what it was, or publish the same corpus again into another folder and set data.stream.url to it, and resume the run"
            )
        with self._errors("writing", partial):
            try:
                self._reserve(partial, entry.num_bytes)
                with partial.open("r+b") as file:
                    file.write(data)
                with self._room():  # whoever adds up the files finds it once
                    partial.rename(self._path(shard, _WHOLE))
            except BaseException:
                with self._room():
                    partial.unlink(missing_ok=True)
                raise

    def _reserve(self, partial: Path, num_bytes: int) -> None:
        """Makes room by removing what was fetched first, and takes it."""
        with self._room():
            self._remove_abandoned()
            files = sorted((self._folder.glob(f"*{_WHOLE}")), key=lambda path: path.stat().st_mtime_ns)
            used = sum(path.stat().st_size for path in [*files, *self._folder.glob(f"*{_PARTIAL}")])
            for path in files:
                if used + num_bytes <= self._max_bytes:
                    break
                if (shard := int(path.stem)) not in self._wanted:
                    used -= path.stat().st_size
                    path.unlink()
                    self._open.pop(shard, None)
            if used + num_bytes > self._max_bytes:
                raise StorageError(
                    f"{self._folder} holds {used} bytes of shards that are needed now, and one more has {num_bytes}: raise "
                    f"data.stream.max_bytes ({self._max_bytes}), or lower data.stream.window_shards in a new run"
                )
            with partial.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, num_bytes)

    def _remove_abandoned(self) -> None:
        """What a process left that was killed while it fetched: nobody has its lock."""
        for path in self._folder.glob(f"*{_PARTIAL}"):
            with contextlib.suppress(BlockingIOError), self._lock(int(path.stem), wait=False):
                path.unlink(missing_ok=True)

    def _map(self, shard: int) -> None:
        """Opens a shard; one that was damaged on the disk is removed instead. FileNotFoundError when it is gone meanwhile."""
        path = self._path(shard, _WHOLE)
        data = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
        if self._shards[shard].difference(data.data):
            with self._room():
                path.unlink()
        else:
            self._open[shard] = data.view(self._dtype)

    def _path(self, shard: int, suffix: str) -> Path:
        return self._folder / f"{shard:08d}{suffix}"

    def _lock(self, shard: int, wait: bool = True) -> contextlib.AbstractContextManager[None]:
        return self._locked(self._path(shard, _LOCK), wait)

    def _room(self) -> contextlib.AbstractContextManager[None]:
        """Nobody else adds to the folder or takes from it."""
        return self._locked(self._folder / f"room{_LOCK}")

    @contextlib.contextmanager
    def _locked(self, path: Path, wait: bool = True) -> Iterator[None]:
        """BlockingIOError when another thread or process has it and is not waited for."""
        with self._errors("locking", path):
            file = path.open("ab")
        with file:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield

    def _errors(self, doing: str, path: Path) -> contextlib.AbstractContextManager[None]:
        return storage_errors(doing, str(path), setting=self._setting)
