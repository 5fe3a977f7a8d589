"""The only module that talks to fsspec: durable writes, exclusive creates, byte ranges, append-only segments.

Nothing is ever renamed or overwritten, since object stores can do neither safely. Errors of storage come out as
`StorageError` with the path and what to do; `FileNotFoundError` and `FileExistsError` pass through, as answers.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec

from zerofleet.trainer.errors import StorageError, UserError

SEGMENT_BYTES = 4 * 1024 * 1024
"""A segment is closed when it passes this size."""

_REMEDIES = {
    errno.ENOSPC: "the disk is full: free space there, or set {setting} to a larger place",
    errno.EDQUOT: "the quota is used up: free space there, or set {setting} to another place",
    errno.EROFS: "the file system is mounted read-only: set {setting} to a writable place",
    errno.EACCES: "permission denied: make it writable for this user, or set {setting} to another place",
    errno.EPERM: "not permitted: make it writable for this user, or set {setting} to another place",
}


@contextlib.contextmanager
def storage_errors(doing: str, path: str, setting: str = "run.storage") -> Iterator[None]:
    """Turns an OSError into a StorageError that names the path and the remedy; `setting` is the key that says where it lies."""
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "check that the storage is reachable and writable")
        raise StorageError(
            f"{doing} {path} failed ({error.strerror or error}): {remedy.format(setting=setting)}"
        ) from error


def fsync_folder(folder: Path) -> None:
    """Makes a new name in `folder` durable; a file's own fsync does not."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Storage:
    """A folder on any fsspec file system; every path given to a method is relative to it."""

    def __init__(self, url: str) -> None:
        try:
            self._fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False) if "://" in url else _local_fs(url)
        except (ValueError, ImportError) as error:
            raise UserError(f"run.storage={url!r} cannot be opened: {error}") from error
        self.url = url.rstrip("/")
        self._root = str(root).rstrip("/")
        protocol = self._fs.protocol if isinstance(self._fs.protocol, str) else self._fs.protocol[0]
        self.is_local = protocol in ("file", "local")

    def sub(self, path: str) -> Storage:
        """The storage of a folder below this one."""
        return Storage(f"{self.url}/{path}")

    def path(self, path: str = "") -> str:
        """The full path, for messages and for libraries that take one."""
        return f"{self._root}/{path}" if path else self._root

    def local_path(self, path: str = "") -> Path:
        """The path on this machine's disk. Raises ValueError when the storage is remote."""
        if not self.is_local:
            raise ValueError(f"{self.url} is not on a local disk")
        return Path(self.path(path))

    # -- reading ---------------------------------------------------------------------------------------------------
    def exists(self, path: str) -> bool:
        with storage_errors("looking for", self.path(path)):
            return bool(self._fs.exists(self.path(path)))

    def size(self, path: str) -> int:
        """Bytes of a file; FileNotFoundError when it is missing."""
        with storage_errors("reading the size of", self.path(path)):
            return int(self._fs.size(self.path(path)))

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """Bytes [start, end) of a file, the whole by default; FileNotFoundError when it is missing."""
        with storage_errors("reading", self.path(path)):
            return bytes(self._fs.cat_file(self.path(path), start=start, end=end))

    def list(self, path: str = "") -> list[str]:
        """Sorted names directly in a folder; an absent folder is empty."""
        with storage_errors("listing", self.path(path)):
            try:
                entries = self._fs.ls(self.path(path), detail=False)
            except FileNotFoundError:
                return []
        return sorted(str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries)

    # -- writing ---------------------------------------------------------------------------------------------------
    def create(self, path: str, data: bytes) -> None:
        """Writes a new file, whole and durable, or raises FileExistsError: the claim of whoever comes first."""
        full = self.path(path)
        with storage_errors("creating", full):
            if self.is_local:
                _create_local(Path(full), data)
            else:
                with self._fs.open(full, "xb") as file:
                    file.write(data)

    def write_stream(self, path: str, chunks: Iterable[bytes | memoryview]) -> int:
        """Writes a new file chunk by chunk and makes it durable (file and folder). Returns its bytes.

        A file that could not be finished is removed, to leave its room on the disk to others.
        """
        full, written = self.path(path), 0
        with storage_errors("writing", full):
            if self.is_local:
                Path(full).parent.mkdir(parents=True, exist_ok=True)
            with self._fs.open(full, "xb") as file:
                try:
                    for chunk in chunks:
                        file.write(chunk)
                        written += len(chunk)
                    if self.is_local:
                        file.flush()
                        os.fsync(file.fileno())
                except OSError:
                    if self.is_local:
                        Path(full).unlink()
                    raise
            if self.is_local:
                fsync_folder(Path(full).parent)
        return written

    def remove(self, path: str) -> None:
        """Removes a file or a folder with all in it; an absent one is fine."""
        with storage_errors("removing", self.path(path)), contextlib.suppress(FileNotFoundError):
            self._fs.rm(self.path(path), recursive=True)

    def probe_writable(self) -> None:
        """Creates and removes a small file. Raises StorageError with the remedy when that fails."""
        name = f".probe-{os.getpid()}-{os.urandom(4).hex()}"
        with storage_errors("writing to", self.path()):
            if self.is_local:
                Path(self.path()).mkdir(parents=True, exist_ok=True)
            with self._fs.open(self.path(name), "wb") as file:
                file.write(b"probe" * 1024)
            self._fs.rm(self.path(name))


def _local_fs(url: str) -> tuple[Any, str]:
    return fsspec.filesystem("file"), str(Path(url).expanduser().absolute())


def _create_local(path: Path, data: bytes) -> None:
    """Link rather than open("xb"): a reader never sees half of it, and a crash leaves no half-made claim."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        os.link(temporary, path)
    finally:
        Path(temporary).unlink()
    fsync_folder(path.parent)


class SegmentWriter:
    """Appends lines to numbered files `segment-00000.jsonl`, ... in a folder of this writer's own.

    On a local disk the open segment grows line by line, so readers follow live. Object stores cannot append: there a
    `flush` writes what has gathered as the next segment.
    """

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage, self._folder = storage, folder
        self._next = len(storage.list(folder))
        self._pending: list[str] = []
        self._file: io.BufferedWriter | None = None
        self._written = 0

    def append(self, line: str) -> None:
        self._pending.append(line)
        if self._storage.is_local:
            self._write_local()

    def flush(self, durable: bool = False) -> None:
        """Makes all lines readable by others; with `durable`, they also survive a power cut."""
        if self._storage.is_local:
            if self._file is not None and durable:
                with storage_errors("writing to", self._storage.path(self._folder)):
                    os.fsync(self._file.fileno())
        elif self._pending:
            self._storage.write_stream(self._segment_path(), [self._take()])
            self._next += 1

    def close(self) -> None:
        self.flush(durable=True)
        if self._file is not None:
            self._file.close()
            self._file = None

    def _segment_path(self) -> str:
        return f"{self._folder}/segment-{self._next:05d}.jsonl"

    def _take(self) -> bytes:
        data = "".join(line + "\n" for line in self._pending).encode()
        self._pending.clear()
        return data

    def _write_local(self) -> None:
        with storage_errors("writing to", self._storage.path(self._folder)):
            if self._file is None:
                path = self._storage.local_path(self._segment_path())
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = path.open("xb")
                fsync_folder(path.parent)
                self._written = 0
            data = self._take()
            self._file.write(data)
            self._file.flush()
        self._written += len(data)
        if self._written >= SEGMENT_BYTES:
            self.close()
            self._next += 1


def read_segments(storage: Storage, folder: str) -> Iterator[str]:
    """All whole lines of a folder's segments, in order. A line that a crash cut short is left out."""
    for name in storage.list(folder):
        if name.startswith("segment-"):
            data = storage.read(f"{folder}/{name}")
            yield from data[: data.rfind(b"\n") + 1].decode().splitlines()
