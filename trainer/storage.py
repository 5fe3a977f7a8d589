"""The only module that talks to fsspec: durable writes, exclusive creates, byte ranges, append-only segments.

Nothing is ever renamed or overwritten, since object stores can do neither safely. Errors of storage come out as
`StorageError` with the path and what to do. Answers pass through: `FileNotFoundError` of whoever reads, lists or
removes, and `FileExistsError`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
from fsspec.spec import AbstractBufferedFile

from zerofleet.trainer import local_file
from zerofleet.trainer.errors import StorageError, UserError, ZerofleetError

SEGMENT_BYTES = 4 * 1024 * 1024
"""A segment is closed when it passes this size."""

_REMEDIES = {
    errno.ENOSPC: "the disk is full: free space there, or set {setting} to a larger place",
    errno.EDQUOT: "the quota is used up: free space there, or set {setting} to another place",
    errno.EROFS: "the file system is mounted read-only: set {setting} to a writable place",
    errno.EACCES: "permission denied: make it writable for this user, or set {setting} to another place",
    errno.ENOTDIR: "a file is where a folder is needed: set {setting} to a folder",
    errno.EPERM: "not permitted: make it writable for this user, or set {setting} to another place",
}
_LOCAL_REMEDY = "check that the storage is reachable and writable"
_REMOTE_REMEDY = "check {setting}, the credentials (they must allow to read, write and delete there) and the network"


@contextlib.contextmanager
def storage_errors(
    doing: str, path: str, setting: str = "run.storage", *, is_local: bool = True, creates: bool = False
) -> Iterator[None]:
    """Turns what storage raises into a StorageError with path and remedy; `setting` is the key that says where it lies.

    Clients of object stores have no error in common, so of a remote one every exception counts. With `creates` a
    FileNotFoundError is no answer either: it is a missing bucket or folder.
    """
    try:
        yield
    except (ZerofleetError, FileExistsError):
        raise
    except Exception as error:
        if (isinstance(error, FileNotFoundError) and not creates) or (is_local and not isinstance(error, OSError)):
            raise
        if creates and not is_local and _says_it_exists(error):
            raise FileExistsError(f"{path} exists already") from error
        number, text = (error.errno, error.strerror) if isinstance(error, OSError) else (None, None)
        remedy = _REMEDIES.get(number or 0, _LOCAL_REMEDY if is_local else _REMOTE_REMEDY)
        what = text or (str(error) if is_local else f"{type(error).__name__}: {error}")
        raise StorageError(f"{doing} {path} failed ({what}): {remedy.format(setting=setting)}") from error


def _says_it_exists(error: BaseException | None) -> bool:
    """Whether a store refused an exclusive create: EEXIST, or HTTP 409 or 412 as botocore's errors hold it."""
    while error is not None:
        response = getattr(error, "response", None)
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
        if status in (409, 412) or (isinstance(error, OSError) and error.errno == errno.EEXIST):
            return True
        error = error.__cause__  # not __context__: that may be an earlier refusal that the caller is just handling
    return False


def fsync_folder(folder: Path) -> None:
    """Makes a new name in `folder` durable; a file's own fsync does not."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Storage:
    """A folder on any fsspec file system; every path given to a method is relative to it."""

    def __init__(self, url: str, setting: str = "run.storage") -> None:
        """`setting` is the key that says where it lies, for messages."""
        try:
            self._fs, root = _open_fs(url)
        except (ValueError, ImportError) as error:
            raise UserError(f"{setting}={url!r} cannot be opened: {error}") from error
        self._setting = setting
        self.url = url.rstrip("/")
        self._root = str(root).rstrip("/")
        protocol = self._fs.protocol if isinstance(self._fs.protocol, str) else self._fs.protocol[0]
        self.is_local = protocol in ("file", "local")

    def sub(self, path: str) -> Storage:
        """The storage of a folder below this one."""
        return Storage(f"{self.url}/{path}", self._setting)

    def path(self, path: str = "") -> str:
        """The full path, for messages and for libraries that take one."""
        return f"{self._root}/{path}" if path else self._root

    @property
    def identity(self) -> str:
        """The same for all ways to name this folder that can be told to be the same."""
        return str(self.local_path().resolve()) if self.is_local else self.url

    def local_path(self, path: str = "") -> Path:
        """The path on this machine's disk. Raises ValueError when the storage is remote."""
        if not self.is_local:
            raise ValueError(f"{self.url} is not on a local disk")
        return Path(self.path(path))

    # -- reading ---------------------------------------------------------------------------------------------------
    def exists(self, path: str) -> bool:
        """Not by fsspec's own `exists`, which says no whatever the disk says: whoever hears that deletes what is there, or starts
        from scratch."""
        with self._errors("looking for", self.path(path)):
            try:
                self._fs.info(self.path(path))
            except (FileNotFoundError, NotADirectoryError):
                return False
            return True

    def size(self, path: str) -> int:
        """Bytes of a file; FileNotFoundError when it is missing."""
        with self._errors("reading the size of", self.path(path)):
            return int(self._fs.size(self.path(path)))

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """Bytes [start, end) of a file, the whole by default; FileNotFoundError when it is missing."""
        with self._errors("reading", self.path(path)):
            return bytes(self._fs.cat_file(self.path(path), start=start, end=end))

    def read_pieces(self, path: str, start: int, pieces: Sequence[memoryview]) -> Iterator[memoryview]:
        """Fills `pieces`, one after the other, with a file's bytes from `start` on, and yields them part by part as they are
        filled; nothing more where the file ends. FileNotFoundError when it is missing."""
        with self._errors("reading", self.path(path)):
            if self.is_local:
                yield from local_file.read_pieces(Path(self.path(path)), start, pieces)
            else:
                end = start + sum(len(piece) for piece in pieces)
                data = memoryview(self._fs.cat_file(self.path(path), start=start, end=end))
                for piece in pieces:
                    count = min(len(piece), len(data))
                    piece[:count] = data[:count]
                    yield piece[:count]
                    data = data[count:]

    def list(self, path: str = "") -> list[str]:
        """Sorted names directly in a folder; an absent folder is empty."""
        with self._errors("listing", self.path(path)):
            try:
                entries = self._fs.ls(self.path(path), detail=False)
            except FileNotFoundError:
                return []
            if self.is_local and entries == [self.path(path)]:  # what fsspec says of a file
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return sorted(str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries)

    # -- writing ---------------------------------------------------------------------------------------------------
    def create(self, path: str, data: bytes) -> None:
        """Writes a new file, whole and durable, or raises FileExistsError: the claim of whoever comes first."""
        if self.is_local:
            with self._errors("creating", self.path(path), creates=True):
                _put_local(Path(self.path(path)), data, os.link)
        elif data:
            self.write_stream(path, [data])
        else:  # a file that nothing is written to is created by s3fs without a look at what is there
            with self._errors("creating", self.path(path), creates=True):
                self._fs.pipe_file(self.path(path), b"", mode="create")

    def replace(self, path: str, data: bytes) -> None:
        """Puts a file in the place of the one that may be there: who reads it sees one of both, whole. Not for what is claimed."""
        full = self.path(path)
        with self._errors("writing", full, creates=True):
            if not self.is_local:
                self._fs.pipe_file(full, data)
                return
            _put_local(Path(full), data, os.replace)

    def write_stream(self, path: str, chunks: Iterable[bytes | memoryview]) -> int:
        """Writes a new file chunk by chunk and makes it durable (file and folder). Returns its bytes.

        Raises FileExistsError when it is there already, and what `chunks` raises as it is. A file that could not be
        finished is not left behind: nobody takes it for a whole one, and its room on the disk is free for others.
        """
        full, written = self.path(path), 0
        with self._new_file(full) as file:
            for chunk in chunks:
                with self._errors("writing", full, creates=True):
                    file.write(chunk)
                written += len(chunk)
        return written

    def remove(self, path: str) -> None:
        """Removes a file or a folder with all in it; an absent one is fine."""
        with self._errors("removing", self.path(path)), contextlib.suppress(FileNotFoundError):
            self._fs.rm(self.path(path), recursive=True)

    def probe_writable(self) -> None:
        """Creates and removes a small file. Raises StorageError with the remedy when that fails."""
        name = f".probe-{os.getpid()}-{os.urandom(4).hex()}"
        self.create(name, b"probe" * 1024)
        self.remove(name)

    # -- inside ----------------------------------------------------------------------------------------------------
    def _errors(self, doing: str, full: str, creates: bool = False) -> contextlib.AbstractContextManager[None]:
        return storage_errors(doing, full, self._setting, is_local=self.is_local, creates=creates)

    @contextlib.contextmanager
    def _new_file(self, full: str) -> Iterator[Any]:
        """A new file that is whole and durable after the block, and gone when anything was raised."""
        with self._errors("writing", full, creates=True):
            if self.is_local:
                _make_folder(Path(full).parent)
            file = local_file.NewFile(Path(full)) if self.is_local else self._fs.open(full, "xb")
        try:
            yield file
            with self._errors("writing", full, creates=True):
                if self.is_local:
                    file.sync()
                    fsync_folder(Path(full).parent)
                file.close()
        except BaseException as error:
            self._discard(file, full, error)
            raise

    def _discard(self, file: Any, full: str, cause: BaseException) -> None:
        """Leaves nothing of an unfinished file; where that fails, `cause` says so too."""
        try:
            if isinstance(file, AbstractBufferedFile):
                file.closed = True  # only close() commits: what has its name now is of whoever came first, and stays
                file.discard()
            else:
                with contextlib.suppress(Exception):  # the last bytes of what is thrown away need not arrive
                    file.close()
                self._fs.rm_file(full)
        except Exception as error:  # noqa: BLE001 - the cause is what the caller must learn
            cause.add_note(f"{full} may be left half-written: removing it failed as well ({error})")


def _open_fs(url: str) -> tuple[Any, str]:
    """A file system and the path in it. Raises ValueError or ImportError when there is none for `url`."""
    protocol, is_url, _ = url.partition("://")
    if not is_url:
        return fsspec.filesystem("file"), str(Path(url).expanduser().absolute())
    if protocol in ("s3", "s3a"):
        from zerofleet.trainer.s3 import S3  # s3fs is an extra

        return S3(use_listings_cache=False), S3._strip_protocol(url)
    fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return fs, str(root)


def _make_folder(path: Path) -> None:
    """With its parents, all of them durable: else a power cut may take the folder, and what is durable in it. Raises OSError. A file
    in its place is no FileExistsError: that would say that someone was here first."""
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from error
    for folder in new:
        fsync_folder(folder.parent)


def _put_local(path: Path, data: bytes, put: Callable[[str, Path], None]) -> None:
    """`put` gives a whole file its name; link rather than open("xb"): a reader never sees half of it, and a crash leaves no half-made claim."""
    _make_folder(path.parent)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        put(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    fsync_folder(path.parent)


class SegmentWriter:
    """Appends lines to numbered files `segment-00000.jsonl`, ... in a folder of this writer's own.

    On a local disk the open segment grows line by line, so readers follow live. Object stores cannot append: there a
    `flush` writes what has gathered as the next segment.
    """

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage, self._folder = storage, folder
        numbers = [
            int(match[1]) for name in storage.list(folder) if (match := re.fullmatch(r"segment-(\d+)\.jsonl", name))
        ]
        self._next = max(numbers, default=-1) + 1
        self._pending: list[str] = []
        self._file: io.FileIO | None = None
        self._written = 0

    def append(self, line: str) -> None:
        """Adds a line. Raises StorageError, and tries again at the next `append` or `flush`."""
        self._pending.append(line)
        if self._storage.is_local:
            self._write_local()

    def flush(self, durable: bool = False) -> None:
        """Makes all lines readable by others; with `durable`, they also survive a power cut. Raises StorageError."""
        if self._pending:
            self._write_local() if self._storage.is_local else self._write_remote()
        if self._file is not None and durable:
            with storage_errors("writing to", self._storage.path(self._folder)):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        self.flush(durable=True)
        if self._file is not None:
            self._file.close()
            self._file = None

    def _segment_path(self) -> str:
        return f"{self._folder}/segment-{self._next:05d}.jsonl"

    def _data(self) -> bytes:
        return "".join(line + "\n" for line in self._pending).encode()

    def _write_remote(self) -> None:
        while self._pending:
            data, lines = self._data(), len(self._pending)
            try:
                self._storage.write_stream(self._segment_path(), [data])
            except FileExistsError:
                # An earlier try arrived although it seemed to fail: it holds the first of these lines.
                there = self._storage.read(self._segment_path())
                lines = there.count(b"\n") if data.startswith(there) else 0
            del self._pending[:lines]
            self._next += 1

    def _write_local(self) -> None:
        with storage_errors("writing to", self._storage.path(self._folder), creates=True):
            if self._file is None:
                path = self._storage.local_path(self._segment_path())
                _make_folder(path.parent)
                self._file, self._written = path.open("xb", buffering=0), 0
                fsync_folder(path.parent)
            data, done = self._data(), 0
            # At its own place in the file, so that a second try writes over what the first left half-done.
            while done < len(data):
                done += os.pwrite(self._file.fileno(), data[done:], self._written + done)
        self._pending.clear()
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
