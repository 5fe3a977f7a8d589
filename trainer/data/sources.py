"""Where documents come from: `data.files` (globs on any fsspec file system, or the standard library) and hub datasets.

`resolve` lists a corpus as data shards in a fixed order, with an identity that changes when any of them does. Nothing is
read until a shard's documents are asked for.
"""

from __future__ import annotations

import glob
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import fsspec

from zerofleet.trainer.config import PYTHON_STDLIB, DataConfig, HubDataset
from zerofleet.trainer.data.formats import format_of, read_documents, reading
from zerofleet.trainer.errors import DataError, StorageError, UserError

_STDLIB_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "__pycache__"}
_STAMPS = ("ETag", "etag", "md5Hash", "checksum", "LastModified", "last_modified", "updated", "mtime", "created")
"""What file systems call the version of a file, best first."""
_HUB_SHARD_ROWS = 16384


class Shard(Protocol):
    """A data shard: one file, or a range of rows."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def num_bytes(self) -> int:
        """Size as stored; 0 when it is not known. For progress and for grouping."""

    def documents(self) -> Iterator[str]:
        """The documents in order, streamed, blank ones included. DataError or StorageError when they cannot be read."""


@dataclass(frozen=True)
class Corpus:
    shards: Sequence[Shard]
    identity: list[Any]
    """JSON that changes when the list, the size or the version of any shard does."""

    @property
    def num_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)


@dataclass(frozen=True)
class FileShard:
    """One file. `url` is what fsspec opens; `name` is how the user would write it."""

    url: str
    name: str
    num_bytes: int
    version: str
    format: str
    text_field: str

    def documents(self) -> Iterator[str]:
        with reading(self.name), fsspec.open(self.url, "rb") as raw:
            yield from read_documents(self.format, raw, self.name, self.text_field)


@dataclass(frozen=True)
class RowsShard:
    """Rows [start, end) of a `datasets.Dataset`."""

    name: str
    num_bytes: int
    dataset: Any
    start: int
    end: int
    text_field: str

    def documents(self) -> Iterator[str]:
        with reading(self.name):
            for start in range(self.start, self.end, 512):
                texts = self.dataset[start : min(start + 512, self.end)][self.text_field]
                for row, text in enumerate(texts, start):
                    if text is not None and not isinstance(text, str):
                        raise DataError(
                            f"{self.name}, row {row}: {self.text_field!r} holds {type(text).__name__}, not text:"
                            " set data.text_field"
                        )
                    yield text or ""


def is_blank(document: str) -> bool:
    """Such documents are left out everywhere."""
    return not document or document.isspace()


def resolve(data: DataConfig) -> Corpus:
    """Lists the corpus. DataError when a path is missing or a glob matches nothing."""
    if data.hub is not None:
        return _hub_corpus(data.hub, data.text_field)
    shards: dict[str, FileShard] = {}
    for entry in data.files:
        for shard in _list_stdlib() if entry == PYTHON_STDLIB else _list_files(entry, data):
            shards.setdefault(shard.url, shard)  # a file that two globs match is read once
    return Corpus(list(shards.values()), [[shard.url, shard.num_bytes, shard.version] for shard in shards.values()])


def stdlib_root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _list_stdlib() -> list[FileShard]:
    paths = []
    for folder, folders, names in os.walk(stdlib_root()):
        folders[:] = [name for name in folders if name not in _STDLIB_SKIPPED]
        paths += [Path(folder) / name for name in names if name.endswith(".py")]
    if not paths:
        raise DataError(
            f"{PYTHON_STDLIB}: this Python has no .py files in {stdlib_root()}: give data.files of your own"
        )
    return [_local_shard(path) for path in sorted(paths)]


def _local_shard(path: Path) -> FileShard:
    status = path.stat()
    return FileShard(str(path), str(path), status.st_size, str(status.st_mtime_ns), "text", "")


def _list_files(entry: str, data: DataConfig) -> list[FileShard]:
    """The files that one entry of `data.files` names, sorted."""
    is_url = "://" in entry
    try:
        fs, path = fsspec.core.url_to_fs(entry if is_url else str(Path(entry).expanduser().absolute()))
    except (ValueError, ImportError) as error:
        raise UserError(f"data.files: {entry!r} cannot be opened: {error}") from error
    try:
        if glob.has_magic(path) and not fs.exists(path):
            found = {name: info for name, info in fs.glob(path, detail=True).items() if info["type"] == "file"}
            if not found:
                raise DataError(f"data.files: {entry!r} matches no file: check the glob (`**` reaches into folders)")
        else:
            found = {path: fs.info(path)}
    except FileNotFoundError as error:
        raise DataError(f"data.files: {entry!r} does not exist: check the path (now in {Path.cwd()})") from error
    except OSError as error:
        raise StorageError(f"listing {entry!r} failed ({error}): check that it can be reached") from error
    shards = []
    for name, info in sorted(found.items()):
        if info["type"] != "file":
            raise DataError(f"data.files: {entry!r} is a folder: name its files, for example {entry.rstrip('/')}/**")
        version = (
            _local_version(name) if not is_url else next((str(info[key]) for key in _STAMPS if info.get(key)), None)
        )
        shards.append(
            FileShard(
                url=fs.unstrip_protocol(name) if is_url else name,
                name=fs.unstrip_protocol(name) if is_url else name,
                num_bytes=int(info.get("size") or 0),
                version=version or fs.ukey(name),
                format=format_of(name) if data.format == "auto" else data.format,
                text_field=data.text_field,
            )
        )
    return shards


def _local_version(path: str) -> str:
    """Modification time in ns: fsspec's own is a float, too coarse to notice a quick change."""
    return str(Path(path).stat().st_mtime_ns)


def _hub_corpus(hub: HubDataset, text_field: str) -> Corpus:
    import datasets

    what = f"data.hub: {hub.id!r}" + (f", {hub.name!r}" if hub.name else "") + f", split {hub.split!r}"
    try:
        rows = datasets.load_dataset(hub.id, hub.name, split=hub.split, revision=hub.revision)
    except (OSError, ValueError, RuntimeError) as error:  # unknown id, name, split or revision, or no network
        raise DataError(
            f"{what} cannot be loaded ({error}): check the id, name, split and revision, and that the hub can be reached"
        ) from error
    if text_field not in rows.column_names:
        raise DataError(
            f"{what} has no column {text_field!r}; it has {', '.join(map(repr, rows.column_names))}: set data.text_field"
        )
    row_bytes = rows.data.nbytes // max(1, len(rows))
    shards = [
        RowsShard(f"{hub.id}[{start}:{end}]", row_bytes * (end - start), rows, start, end, text_field)
        for start in range(0, len(rows), _HUB_SHARD_ROWS)
        for end in [min(start + _HUB_SHARD_ROWS, len(rows))]
    ]
    # The prepared files lie in a folder named by the hash of the revision and of the data files.
    files = [[Path(file["filename"]).parent.name, Path(file["filename"]).stat().st_size] for file in rows.cache_files]
    return Corpus(shards, [hub.id, hub.name, hub.split, hub.revision, len(rows), files])
