"""Where documents come from: `data.files` (globs on any fsspec file system, or the standard library) and hub datasets.

`resolve` lists a corpus as data shards in a fixed order, with an identity that changes when any of them does. Nothing is
read until a shard's documents are asked for.
"""

from __future__ import annotations

import bisect
import contextlib
import glob
import itertools
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import fsspec

from zerofleet.trainer.config import (
    DEFAULT_SOURCE,
    PYTHON_STDLIB,
    DataConfig,
    HubDataset,
    SourceFields,
    is_of_python,
)
from zerofleet.trainer.data.bad_data import BadData, OnBad, Reading, stop
from zerofleet.trainer.data.columns import checked_text, need_column
from zerofleet.trainer.data.formats import format_of, read_documents, reading_errors
from zerofleet.trainer.errors import DataError, StorageError, UserError, ZerofleetError

_STDLIB_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "__pycache__"}
_HASH_STAMPS = ("ETag", "etag", "md5Hash", "checksum")
_STAMPS = (*_HASH_STAMPS, "LastModified", "last_modified", "updated", "mtime", "created")
"""What file systems call the version of a file, best first."""
_LOCAL_STAMP = "mtime_ns"
"""fsspec gives a local file's time as a float, too coarse to notice a quick change."""
_HUB_SHARD_ROWS = 16384
_READ_ROWS = 512


_Listed = tuple[Any, str, str, dict[str, Any]]
"""File system, path in it, name for messages, and what the file system says about it."""


class Shard(Protocol):
    """A data shard: one file, or a range of rows."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def num_bytes(self) -> int:
        """Size as stored; 0 when it is not known. For progress and for grouping."""

    def documents(self, on_bad: OnBad = stop) -> Iterator[str]:
        """The documents in order, streamed, blank ones included. What is bad goes to `on_bad`, and is left out when that returns.
        DataError or StorageError when they cannot be read for another reason."""


@dataclass(frozen=True)
class Corpus:
    shards: Sequence[Shard]
    identity: list[Any]
    """JSON that changes when the list, the size or the version of any shard does."""
    sources: Sequence[str] = (DEFAULT_SOURCE,)
    """Names of the sources that the shards are of, one source after the other."""
    first_shards: Sequence[int] = (0,)
    """Index of each source's first shard."""

    @property
    def num_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)

    def source_of(self, shard: int) -> int:
        """Index of the source that the shard with this index is of."""
        return bisect.bisect_right(self.first_shards, shard) - 1


@dataclass(frozen=True)
class FileShard:
    """One file of an fsspec file system. `name` is how the user would write it; `version` changes with its content."""

    fs: Any
    path: str
    name: str
    num_bytes: int
    version: str
    stamp: str
    """What the file system calls this version; empty where it has nothing of the kind."""
    format: str
    text_field: str
    section: str
    """Where its settings stand: `data`, or `data.sources.<name>`."""
    max_document_bytes: int

    def documents(self, on_bad: OnBad = stop) -> Iterator[str]:
        reading = Reading(self.name, self.section, self.text_field, self.max_document_bytes, on_bad)
        try:
            with _reaching(self.name, self.fs), reading_errors(reading), self.fs.open(self.path, "rb") as raw:
                yield from read_documents(raw, *format_of(self.path, self.format), reading)
        except BadData as error:
            on_bad(error if error.lost == "shard" else BadData(error.what, error.remedy, "rest"))
            if error.lost == "shard":
                return
        self._check_unchanged(reading)

    def _check_unchanged(self, reading: Reading) -> None:
        """What was read is a mixture of two files otherwise, or not the one that the cache's name stands for.

        Remote file systems spell times in listings and in answers to single questions differently, or leave them out: without a hash of
        the store's the size decides.
        """
        try:
            with _reaching(self.name, self.fs), reading_errors(reading):
                if not _is_local(self.fs):
                    self.fs.invalidate_cache()
                info = self.fs.info(self.path)
                size = self.num_bytes if info.get("size") is None else int(info["size"])
                is_told = self.stamp in (_LOCAL_STAMP, *_HASH_STAMPS)
                version = _version(self.fs, self.path, info, self.stamp) if is_told else ""
                is_same = size == self.num_bytes and version in ("", self.version)
            if not is_same:
                what = (
                    f"{self.name} changed while it was prepared ({self.num_bytes} bytes when it was listed, {size} now)"
                )
                raise BadData(what, "try again when nobody writes to it any more", "shard")
        except BadData as error:
            reading.on_bad(error)


@dataclass(frozen=True)
class RowsShard:
    """Rows [start, end) of a `datasets.Dataset`."""

    name: str
    num_bytes: int
    dataset: Any
    start: int
    end: int
    text_field: str
    section: str
    max_document_bytes: int

    def documents(self, on_bad: OnBad = stop) -> Iterator[str]:
        reading = Reading(self.name, self.section, self.text_field, self.max_document_bytes, on_bad)
        with reading_errors(reading):
            for start in range(self.start, self.end, _READ_ROWS):
                values = self.dataset[start : min(start + _READ_ROWS, self.end)][self.text_field]
                for row, value in enumerate(values, start):
                    yield from checked_text(value, reading, f"{self.name}, row {row}")


def is_blank(document: str) -> bool:
    """Such documents are left out everywhere."""
    return not document or document.isspace()


def resolve(data: DataConfig) -> Corpus:
    """Lists the corpus. DataError when a path is missing or a glob matches nothing."""
    if not data.sources:
        return _resolve_source(data, "data", data.max_document_bytes)
    parts = {
        name: _resolve_source(source, f"data.sources.{name}", data.max_document_bytes)
        for name, source in data.by_source.items()
    }
    if empty := [name for name, part in parts.items() if not part.shards]:
        raise DataError(f"data.sources.{empty[0]} holds no documents: check what it names, or leave it out")
    identity = [
        [name, data.sources[name].format, data.sources[name].text_field, parts[name].identity] for name in parts
    ]
    first_shards = [0, *itertools.accumulate(len(part.shards) for part in parts.values())][:-1]
    return Corpus([shard for part in parts.values() for shard in part.shards], identity, tuple(parts), first_shards)


def _resolve_source(data: SourceFields, section: str, max_document_bytes: int) -> Corpus:
    if data.hub is not None:
        return _hub_corpus(data.hub, data.text_field, section, max_document_bytes)
    shards: dict[str, FileShard] = {}
    for entry in data.files:
        listed = _list_stdlib(section) if entry == PYTHON_STDLIB else _list_files(_here(entry), section)
        settings = ("text", "") if entry == PYTHON_STDLIB else (data.format, data.text_field)
        for fs, path, name, info in listed:
            if name not in shards:  # a file that two globs match is read once
                stamp = _LOCAL_STAMP if _is_local(fs) else next((key for key in _STAMPS if info.get(key)), "")
                size, version = int(info.get("size") or 0), _version(fs, path, info, stamp) or str(fs.ukey(path))
                shards[name] = FileShard(fs, path, name, size, version, stamp, *settings, section, max_document_bytes)
    return Corpus(list(shards.values()), [[shard.name, shard.num_bytes, shard.version] for shard in shards.values()])


def stdlib_root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _here(entry: str) -> str:
    """An entry with the folder of this Python that it begins with, where it does."""
    root, _, rest = entry.partition("/")
    if not rest or not is_of_python(entry):
        return entry
    return str((stdlib_root() if root == PYTHON_STDLIB else Path(sysconfig.get_path("purelib"))) / rest)


def _list_stdlib(section: str) -> list[_Listed]:
    paths = []
    for folder, folders, names in os.walk(stdlib_root()):
        folders[:] = [name for name in folders if name not in _STDLIB_SKIPPED]
        paths += [Path(folder) / name for name in names if name.endswith(".py")]
    if not paths:
        raise DataError(
            f"{PYTHON_STDLIB}: this Python has no .py files in {stdlib_root()}: give {section}.files of your own"
        )
    fs = fsspec.filesystem("file")
    return [(fs, str(path), str(path), fs.info(str(path))) for path in sorted(paths)]


def _list_files(entry: str, section: str) -> list[_Listed]:
    """The files that one entry of `files` names, sorted."""
    is_url, where = "://" in entry, f"{section}.files: {entry!r}"
    try:
        fs, path = fsspec.core.url_to_fs(entry if is_url else str(Path(entry).expanduser().absolute()))
    except (ValueError, ImportError) as error:
        raise UserError(f"{where} cannot be opened: {error}") from error
    with _reaching(f"{section}.files: {entry}", fs):
        try:
            if glob.has_magic(path) and not fs.exists(path):
                found = {name: info for name, info in fs.glob(path, detail=True).items() if info["type"] == "file"}
            else:
                found = {path: fs.info(path)}
        except FileNotFoundError as error:
            raise DataError(f"{where} does not exist: check the path (now in {Path.cwd()})") from error
    if not found:
        raise DataError(f"{where} matches no file: check the glob (`**` reaches into folders)")
    if any(info["type"] != "file" for info in found.values()):
        raise DataError(f"{where} is a folder: name its files, for example {entry.rstrip('/')}/**")
    inside = entry.partition("::")[2]  # of a chain such as zip://*.txt::s3://bucket/a.zip
    return [
        (fs, path, fs.unstrip_protocol(path) + (f"::{inside}" if inside else "") if is_url else path, info)
        for path, info in sorted(found.items())
    ]


def _version(fs: Any, path: str, info: dict[str, Any], stamp: str) -> str:
    """What changes with a file's content; empty where `info` does not have that stamp."""
    if stamp == _LOCAL_STAMP:
        return str(Path(path).stat().st_mtime_ns)
    return str(info.get(stamp) or "")


def _is_local(fs: Any) -> bool:
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


@contextlib.contextmanager
def _reaching(name: str, fs: Any) -> Iterator[None]:
    """Clients of object stores have no error in common: what a remote file system raises becomes a StorageError."""
    try:
        yield
    except ZerofleetError:
        raise
    except Exception as error:
        if _is_local(fs) and not isinstance(error, OSError):
            raise
        raise StorageError(
            f"{name} cannot be reached ({type(error).__name__}: {error}): check the address, the credentials and the network"
        ) from error


def _hub_corpus(hub: HubDataset, text_field: str, section: str, max_document_bytes: int) -> Corpus:
    import datasets

    what = f"{section}.hub: {hub.id!r}" + (f", {hub.name!r}" if hub.name else "") + f", split {hub.split!r}"
    try:
        rows = datasets.load_dataset(hub.id, hub.name, split=hub.split, revision=hub.revision)
    except Exception as error:  # what a builder of `datasets` raises has no base in common
        raise DataError(
            f"{what} cannot be loaded ({' '.join(str(error).split())}): check the id, name, split and revision, and that the hub can be reached"
        ) from error
    need_column(rows.column_names, Reading(hub.id, section, text_field), what)
    row_bytes = rows.data.nbytes // max(1, len(rows))
    shards = [
        RowsShard(
            f"{hub.id}[{start}:{end}]",
            row_bytes * (end - start),
            rows,
            start,
            end,
            text_field,
            section,
            max_document_bytes,
        )
        for start in range(0, len(rows), _HUB_SHARD_ROWS)
        for end in [min(start + _HUB_SHARD_ROWS, len(rows))]
    ]
    # The prepared files lie in a folder named by the hash of the revision and of the data files.
    files = [[Path(file["filename"]).parent.name, Path(file["filename"]).stat().st_size] for file in rows.cache_files]
    return Corpus(shards, [hub.id, hub.name, hub.split, hub.revision, len(rows), files])
