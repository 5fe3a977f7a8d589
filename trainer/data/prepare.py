"""Corpus to cache, once per node: list, tokenizer, parts, index. Killed at any point, the next try goes on and ends the same."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO

import xxhash

from zerofleet.trainer.config import DataConfig
from zerofleet.trainer.data.assemble import write_cache
from zerofleet.trainer.data.bad_data import leave_out, stop
from zerofleet.trainer.data.cache import FORMAT_VERSIONS, INDEX_NAME, TOKENIZER_NAME, DataCache
from zerofleet.trainer.data.duplicates import BANDS, NUM_HASHES, SIMILARITY, check_available
from zerofleet.trainer.data.functions import Functions
from zerofleet.trainer.data.local_files import publish
from zerofleet.trainer.data.mixture import Schedule
from zerofleet.trainer.data.parts import Part, Work, plan_parts
from zerofleet.trainer.data.pool import tokenise_parts
from zerofleet.trainer.data.sources import Corpus, resolve
from zerofleet.trainer.data.stream.attach import attach
from zerofleet.trainer.data.tokenizer import Encoder, save_given, save_trained
from zerofleet.trainer.errors import DataError, UserError
from zerofleet.trainer.storage import storage_errors

Progress = Callable[[str, float, str], None]
"""Stage (list, tokenizer, wait, tokenise, write, ready), fraction of that stage in [0, 1], detail for the user."""

_REPORT_FRACTION = 0.01
_REPORT_INTERVAL_S = 10.0
_RATE_KNOWN_S = 2.0
"""Seconds from which on a rate says something."""


def cache_root(data: DataConfig) -> Path:
    """Where prepared data lies: `data.cache`, else `$ZEROFLEET_CACHE`, else `~/.cache/zerofleet`."""
    return Path(data.cache or os.environ.get("ZEROFLEET_CACHE") or "~/.cache/zerofleet").expanduser().absolute()


def prepare(data: DataConfig, seed: int, progress: Progress) -> DataCache:
    """The cache of a corpus, prepared unless it is there already.

    Raises DataError when the corpus cannot be used, UserError when the tokenizer or the cache's place cannot, StorageError when the disk
    is full.
    """
    if data.stream is not None:
        return attach(data, cache_root(data), progress)
    if data.deduplicate == "near":
        check_available()
    schedule = Schedule.of(data.weights)
    progress("list", 0.0, ", ".join(data.sources or data.files) if data.hub is None else data.hub.id)
    corpus = resolve(data)
    progress("list", 1.0, f"{len(corpus.shards)} data shards, {corpus.num_bytes / 1e6:.1f} MB")
    with _given_tokenizer(data, progress) as given:
        task = _Task(data, seed, corpus, given, cache_root(data) / _key(data, seed, corpus, given))
        cache = _finished(task.folder)
        if cache is None or task.parts_folder.exists():
            with _locked(task.folder, progress) as lock:
                cache = _finished(task.folder) or _build(task, lock, progress)
                if task.parts_folder.exists():  # also of a try that was killed just before it came here
                    shutil.rmtree(task.parts_folder)
    progress("ready", 1.0, _summary(cache) + (_shares(cache, schedule) if data.sources else ""))
    return cache


@dataclass(frozen=True)
class _Task:
    data: DataConfig
    seed: int
    corpus: Corpus
    given: Path | None
    """Folder of the tokenizer that is given; None when one is to be trained."""
    folder: Path
    """The cache's own."""

    @property
    def parts_folder(self) -> Path:
        return self.folder / "parts"


@contextlib.contextmanager
def _given_tokenizer(data: DataConfig, progress: Progress) -> Iterator[Path | None]:
    """A passing folder with the tokenizer that is given; None when one is to be trained."""
    if data.tokenizer is None:
        yield None
        return
    progress("tokenizer", 0.0, f"loading {data.tokenizer}")
    with tempfile.TemporaryDirectory(prefix="zerofleet-tokenizer-") as folder:
        with storage_errors("writing", folder, setting="TMPDIR"):
            save_given(data.tokenizer, Path(folder))
        yield Path(folder)


def _key(data: DataConfig, seed: int, corpus: Corpus, given: Path | None) -> str:
    """Name of the cache's folder: a hash of all that decides its content, from names, sizes and times; no document is read."""
    tokenizer = data.tokenizer_vocab_size if given is None else Encoder(given).fingerprint
    fields: dict[str, object] = data.model_dump(include={"format", "text_field", "sequence_length", "heldout_fraction"})
    fields |= _left_by(data)
    if data.deduplicate is not None:
        fields["deduplicate"] = [data.deduplicate, SIMILARITY, NUM_HASHES, BANDS]
    # The version says how documents are packed; what only says how sequences are fed is no part of the cache.
    parts = [FORMAT_VERSIONS[data.packing], fields, seed, tokenizer, corpus.identity]
    return xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True).encode())


def _left_by(data: DataConfig) -> dict[str, object]:
    """What decides, besides the files, which text is left of a corpus; nothing where all of it is."""
    fields: dict[str, object] = {}
    if data.on_bad == "quarantine":  # else what cannot be read leaves no cache: those that exist keep their names
        fields |= {"on_bad": data.on_bad, "max_document_bytes": data.max_document_bytes}
    return fields | Functions.of(data.filter, data.scrub).fingerprints


def _finished(folder: Path) -> DataCache | None:
    """The cache when it is whole. One that is damaged is prepared again."""
    try:
        return DataCache.open(folder)
    except DataError:
        return None


@contextlib.contextmanager
def _locked(folder: Path, progress: Progress) -> Iterator[BinaryIO]:
    """One preparation on this node at a time. The lock goes with its last holder, however that ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("ab")
    except OSError as error:
        raise UserError(
            f"prepared data cannot be kept in {folder.parent} ({error.strerror}): set data.cache or ZEROFLEET_CACHE to a local"
            " folder that this user can write"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("wait", 0.0, f"another process on this node prepares the same data in {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def _build(task: _Task, lock: BinaryIO, progress: Progress) -> DataCache:
    """Everything that is not there yet, each step whole or not at all; the caller holds the lock."""
    with storage_errors("writing", str(task.folder), setting="data.cache"):
        (task.folder / INDEX_NAME).unlink(missing_ok=True)
        task.parts_folder.mkdir(exist_ok=True)
        _make_tokenizer(task, progress)
    parts = plan_parts(task.corpus)
    data, functions = task.data, Functions.of(task.data.filter, task.data.scrub)
    quarantines = data.on_bad == "quarantine"
    work = Work(task.folder / TOKENIZER_NAME, task.parts_folder, task.seed, quarantines, functions, data.deduplicate)
    _tokenise(parts, work, lock, progress)
    progress("write", 0.0, str(task.folder))
    write_cache(task.folder, task.parts_folder, parts, task.corpus, Encoder(work.tokenizer), task.data)
    progress("write", 1.0, str(task.folder))
    return DataCache.open(task.folder)


def _make_tokenizer(task: _Task, progress: Progress) -> None:
    target, temporary = task.folder / TOKENIZER_NAME, task.folder / f"{TOKENIZER_NAME}.tmp"
    if target.exists():
        return
    shutil.rmtree(temporary, ignore_errors=True)
    if task.given is not None:
        shutil.copytree(task.given, temporary)
    else:
        _train_tokenizer(task.data, task.corpus, temporary, progress)
    publish(temporary, target)


def train_tokenizer(data: DataConfig, progress: Progress) -> Path:
    """The folder of the tokenizer that is trained on a corpus, as its preparation would train it; once, for all that ask.

    Raises DataError when the corpus cannot be used, UserError when the cache's place cannot, StorageError when the disk fails.
    """
    corpus = resolve(data)
    facts: list[object] = [data.format, data.text_field, data.tokenizer_vocab_size, corpus.identity]
    if left := _left_by(data):  # tokenizers of whole corpora keep their names
        facts.append(left)
    folder = cache_root(data) / "tokenizers" / xxhash.xxh3_128_hexdigest(json.dumps(facts, sort_keys=True).encode())
    if folder.exists():
        return folder
    making = folder.with_name(f"{folder.name}.making")
    with _locked(making, progress), storage_errors("writing", str(folder), setting="data.cache"):
        if not folder.exists():
            draft = making / TOKENIZER_NAME
            shutil.rmtree(draft, ignore_errors=True)  # of a try that was killed
            _train_tokenizer(data, corpus, draft, progress)
            publish(draft, folder)
    return folder


def _train_tokenizer(data: DataConfig, corpus: Corpus, folder: Path, progress: Progress) -> None:
    progress("tokenizer", 0.0, f"training a byte-level BPE of {data.tokenizer_vocab_size} entries")
    on_bad = leave_out if data.on_bad == "quarantine" else stop
    save_trained(corpus, data.tokenizer_vocab_size, folder, on_bad, Functions.of(data.filter, data.scrub))
    progress("tokenizer", 1.0, f"{Encoder(folder).size} entries")


def _tokenise(parts: list[Part], work: Work, lock: BinaryIO, progress: Progress) -> None:
    left = [part for part in parts if not part.is_done(work.folder)]
    total_bytes = max(1, sum(part.num_bytes for part in parts))
    done_bytes = sum(part.num_bytes for part in parts) - sum(part.num_bytes for part in left)
    reported_fraction, reported_at, began_at = -1.0, 0.0, time.monotonic()

    def advance(bytes_read: int) -> None:
        """Reports every percent or every 10 s: events are kept for the life of a run."""
        nonlocal reported_fraction, reported_at
        fraction, now = (done_bytes + bytes_read) / total_bytes, time.monotonic()
        if fraction - reported_fraction >= _REPORT_FRACTION or now - reported_at >= _REPORT_INTERVAL_S:
            reported_fraction, reported_at = fraction, now
            text = f"{(done_bytes + bytes_read) / 1e6:.1f} of {total_bytes / 1e6:.1f} MB"
            progress("tokenise", fraction, text + _remaining(total_bytes - done_bytes, bytes_read, now - began_at))

    advance(0)
    tokenise_parts(left, work, lock, advance)
    progress("tokenise", 1.0, f"{total_bytes / 1e6:.1f} MB")


def _remaining(all_bytes: int, bytes_read: int, elapsed_s: float) -> str:
    """Rate and time that remains, of what this try had to do; empty as long as too little is known."""
    if not bytes_read or elapsed_s < _RATE_KNOWN_S:
        return ""
    remaining_s = round((all_bytes - bytes_read) * elapsed_s / bytes_read)
    return f", {bytes_read / 1e6 / elapsed_s:.1f} MB/s, ETA {timedelta(seconds=remaining_s)}"


def _summary(cache: DataCache) -> str:
    splits = []
    for split, name, store in (("train", "train", cache.train), ("heldout", "held out", cache.heldout)):
        text = (
            f"{name} {len(store.document_ends)} documents, {store.num_tokens} tokens, {store.num_sequences} sequences"
        )
        if rates := cache.rates.get(split):
            text += f" ({rates.fill:.2%} full, {rates.truncation:.1%} of the documents cut)"
        splits.append(text)
    text = f"{', '.join(splits)} of {cache.train.sequence_length} tokens; tokenizer of {cache.tokenizer_size}"
    return text + (f"; {cache.left_out}" if cache.left_out else "")


def _shares(cache: DataCache, schedule: Schedule) -> str:
    """Of a mixture: how much of each source there is, and its share of what is fed."""
    total = sum(schedule.counts)
    sources = zip(schedule.names, schedule.counts, cache.train.source_sizes, strict=True)
    return "; sources " + ", ".join(
        f"{name} {size} sequences, {count / total:.2%} of the samples" for name, count, size in sources
    )
