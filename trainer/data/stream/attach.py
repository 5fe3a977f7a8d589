"""What a node needs of a publication before it trains: everything but the shards, in a folder of its cache."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable
from pathlib import Path

import xxhash

from zerofleet.trainer.config import DataConfig, StreamConfig
from zerofleet.trainer.data.cache import DataCache
from zerofleet.trainer.data.local_files import writing
from zerofleet.trainer.data.stream.published import STREAM_NAME, Entry, Published
from zerofleet.trainer.errors import DataError, UserError
from zerofleet.trainer.storage import Storage, storage_errors

_FOLDER = "streams"


def attach(data: DataConfig, root: Path, progress: Callable[[str, float, str], None]) -> DataCache:
    """The published corpus that `data.stream` names, below `root`. Fetched once per node; a try that was killed is gone on with.

    Raises DataError when nothing that can be used is published there, UserError when the job asks for something else than what is.
    """
    stream = data.stream
    assert stream is not None
    storage = Storage(stream.url, "data.stream.url")
    description = _described(storage, stream)
    published = Published.from_bytes(description, storage.path(STREAM_NAME))
    folder = root / _FOLDER / xxhash.xxh3_128_hexdigest(description)
    with storage_errors("writing", str(folder), setting="data.cache"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("ab")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for index, (name, entry) in enumerate(published.files.items()):
            progress("stream", index / len(published.files), name)
            if not _is_there(folder / name, entry):
                _fetch(storage, name, entry, folder / name)
        with writing(folder / STREAM_NAME) as file:
            file.write(description)
    cache = DataCache.open(folder, stream)
    _compare(data, cache, stream.url)
    progress("stream", 1.0, f"{len(published.shards)} shards of {published.shard_sequences} sequences")
    return cache


def _described(storage: Storage, stream: StreamConfig) -> bytes:
    with contextlib.suppress(FileNotFoundError):
        return storage.read(STREAM_NAME)
    raise DataError(
        f"data.stream.url={stream.url} holds no published corpus ({STREAM_NAME} is missing): publish one there with "
        "`python -m zerofleet.trainer.data.stream.publish JOB.yaml URL`, or mend the address"
    )


def _is_there(path: Path, entry: Entry) -> bool:
    """Whether a file has been fetched. It was compared then; it is written whole."""
    return path.exists() and path.stat().st_size == entry.num_bytes


def _fetch(storage: Storage, name: str, entry: Entry, path: Path) -> None:
    try:
        data = storage.read(name)
    except FileNotFoundError:
        raise DataError(
            f"{storage.path(name)} has disappeared since the corpus was published: publish it again"
        ) from None
    if wrong := entry.difference(data):
        raise DataError(f"{storage.path(name)} is not what was published ({wrong}): publish the corpus again")
    path.parent.mkdir(exist_ok=True)
    with writing(path) as file:
        file.write(data)


def _compare(data: DataConfig, cache: DataCache, url: str) -> None:
    """What is said in the job and decided by the publication must agree."""
    published = cache.train.sequence_length
    if data.sequence_length != published:
        raise UserError(
            f"data.sequence_length={data.sequence_length}, but {url} was prepared with {published}: set data.sequence_length={published}, or "
            "publish a corpus that was prepared otherwise"
        )
    if len(cache.train.source_sizes) > 1:
        raise UserError(
            f"{url} holds a mixture of {len(cache.train.source_sizes)} sources: only single corpora can be streamed so far"
        )
