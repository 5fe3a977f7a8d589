"""Publishes a prepared corpus in shards, for runs whose nodes cannot hold it as a whole (`data.stream`).

    python -m zerofleet.trainer.data.stream.publish JOB.yaml URL [--shard-bytes N]

The corpus of the job is prepared first, where that has not been done. What is there already stays, so a try that was killed
is gone on with; a folder that holds something else is refused.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from zerofleet.trainer.data.cache import DataCache
from zerofleet.trainer.data.prepare import prepare
from zerofleet.trainer.data.stream.published import STREAM_NAME, TRAIN_TOKENS, Entry, Published, shard_of, shard_path
from zerofleet.trainer.errors import UserError, ZerofleetError
from zerofleet.trainer.storage import Storage
from zerofleet.trainer.takeover import parse_config

SHARD_BYTES = 64 * 2**20

Say = Callable[[str, float], None]
"""What was published, and the share of all that this makes."""


def publish(
    cache: DataCache, url: str, shard_bytes: int = SHARD_BYTES, say: Say = lambda name, share: None
) -> Published:
    """Writes the cache's files, its shards and, last, `stream.json`.

    Raises UserError when something else is there already, or the cache cannot be streamed.
    """
    store = cache.train
    if len(store.source_sizes) > 1:
        raise UserError(
            f"{cache.path} holds a mixture of {len(store.source_sizes)} sources: only single corpora can be streamed so far"
        )
    storage, dtype = Storage(url, "URL"), cache.token_dtype
    shard_sequences = max(1, shard_bytes // (store.sequence_length * dtype.itemsize))
    firsts = range(0, store.num_sequences, shard_sequences)
    names = sorted(
        str(path.relative_to(cache.path))
        for path in cache.path.rglob("*")
        if path.is_file() and path.name not in (TRAIN_TOKENS, "lock")
    )
    files, shards = {}, []
    for index, name in enumerate(names):
        files[name] = _put(storage, name, (cache.path / name).read_bytes())
        say(name, index / (len(names) + len(firsts)))
    for index, first in enumerate(firsts):
        stop = min(first + shard_sequences, store.num_sequences)
        shards.append(_put(storage, shard_path(index), shard_of(store, first, stop, dtype)))
        say(shard_path(index), (len(names) + index) / (len(names) + len(firsts)))
    published = Published(cache.fingerprint, shard_sequences, files, tuple(shards))
    _put(storage, STREAM_NAME, published.to_bytes())
    say(STREAM_NAME, 1.0)
    return published


def _put(storage: Storage, name: str, data: bytes) -> Entry:
    """Writes an object, or finds it there."""
    entry = Entry.of(data)
    try:
        storage.create(name, data)
    except FileExistsError:
        if wrong := entry.difference(storage.read(name)):
            raise UserError(
                f"{storage.path(name)} is there already and is of another corpus, or was published with other --shard-bytes ({wrong}): publish into an empty folder"
            ) from None
    return entry


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path, help="its sections `data` and `run` say which corpus")
    parser.add_argument("url", help="an empty folder, or a fsspec URL of one")
    parser.add_argument(
        "--shard-bytes", type=int, default=SHARD_BYTES, help="of one data shard, about (default: %(default)s)"
    )
    arguments = parser.parse_args()

    def say(name: str, share: float) -> None:
        sys.stdout.write(f"{share:4.0%} {name}\n")

    try:
        config = parse_config(arguments.job.read_text(), str(arguments.job))
        cache = prepare(config.data, config.run.seed, lambda stage, share, detail: say(f"{stage}: {detail}", share))
        published = publish(cache, arguments.url, arguments.shard_bytes, say)
    except (ZerofleetError, OSError) as error:
        sys.stderr.write(f"zerofleet: {error}\n")
        return error.exit_code if isinstance(error, ZerofleetError) else 2
    num_bytes = sum(entry.num_bytes for entry in published.shards)
    sys.stdout.write(
        f"{len(published.shards)} shards with {num_bytes} bytes. Set data.stream.url={arguments.url} and "
        f"data.sequence_length={cache.train.sequence_length}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
