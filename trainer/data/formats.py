"""Documents out of the bytes of one data shard, streamed: text, jsonl, csv, parquet and Arrow, compressed or not.

What cannot be read raises DataError that names the shard and the place in it.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import csv
import gzip
import io
import json
import lzma
import sys
import tokenize
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, cast

from zerofleet.trainer.errors import DataError, StorageError

_BATCH_ROWS = 512
"""Rows that are decoded at once from columnar formats."""


def _zstd(raw: BinaryIO) -> BinaryIO:
    import pyarrow  # Python's own zstd comes with 3.14

    return cast(BinaryIO, io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd")))


DECOMPRESSORS: dict[str, Callable[[BinaryIO], BinaryIO]] = {
    ".gz": lambda raw: cast(BinaryIO, gzip.GzipFile(fileobj=raw)),
    ".bz2": lambda raw: cast(BinaryIO, bz2.BZ2File(raw)),
    ".xz": lambda raw: cast(BinaryIO, lzma.LZMAFile(raw)),  # noqa: SIM115 - it ends with the file it reads
    ".zst": _zstd,
}
_ENDINGS = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}


def format_of(path: str, configured: str) -> tuple[str, str]:
    """(format, ending of the compression or ""): as configured, or by the ending; what is not known is text."""
    compression = next((ending for ending in DECOMPRESSORS if path.endswith(ending)), "")
    plain = path.removesuffix(compression)
    if configured == "auto":
        configured = next((name for ending, name in _ENDINGS.items() if plain.endswith(ending)), "text")
    return "python" if configured == "text" and plain.endswith(".py") else configured, compression


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns what goes wrong while a shard is read into an error that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(
            f"{name} is gone since the corpus was listed: bring it back, or take it out of data.files"
        ) from error
    except PermissionError as error:
        raise DataError(f"{name} cannot be read (permission denied): make it readable for this user") from error
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise _damaged(name, error) from error
    except OSError as error:
        if error.errno is None:  # bz2 and pyarrow report bad bytes as an OSError without a number
            raise _damaged(name, error) from error
        raise StorageError(f"reading {name} failed ({error}): check that it can be reached, then try again") from error


def read_documents(raw: BinaryIO, format_name: str, compression: str, name: str, text_field: str) -> Iterator[str]:
    """The documents of one opened shard, blank ones included; `format_name` and `compression` as `format_of` gives them."""
    file = DECOMPRESSORS[compression](raw) if compression else raw
    if compression and format_name in ("parquet", "arrow"):
        file = io.BytesIO(file.read())  # these seek, which is slow or impossible in a compressed stream
    return _READERS[format_name](file, name, text_field)


def _decode(data: bytes, name: str, start: int = 0, encoding: str = "utf-8") -> str:
    """Text of `data`, which begins at byte `start` of the shard."""
    mark = len(codecs.BOM_UTF8) if start == 0 and data.startswith(codecs.BOM_UTF8) else 0
    try:
        return data[mark:].decode(encoding)
    except UnicodeDecodeError as error:
        raise _undecodable(name, start + mark + error.start, data[mark + error.start], encoding) from error


def _text(file: BinaryIO, name: str, text_field: str) -> Iterator[str]:
    """One document: the whole file."""
    yield _decode(file.read(), name)


def _python(file: BinaryIO, name: str, text_field: str) -> Iterator[str]:
    """One document: Python source in the encoding its coding cookie names (PEP 263), line ends as Python reads them."""
    data = file.read()
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    except SyntaxError as error:
        if "unknown encoding" in str(error):
            raise DataError(f"{name}: {error}: correct its coding cookie, or leave the file out") from error
        encoding = "utf-8"  # its first lines do not decode: say where
    text = _decode(data, name, encoding="utf-8" if encoding == "utf-8-sig" else encoding)
    yield text.replace("\r\n", "\n").replace("\r", "\n")


def _jsonl(file: Iterable[bytes], name: str, text_field: str) -> Iterator[str]:
    start = 0
    for number, line in enumerate(file, 1):
        text = _decode(line, name, start)
        start += len(line)
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError as error:
            raise DataError(
                f"{name}, line {number} is not JSON ({error}): correct or remove that line; jsonl has one object per line"
            ) from error
        if not isinstance(row, dict):
            raise DataError(f"{name}, line {number} is a JSON {type(row).__name__}: jsonl has one object per line")
        need_column(text_field, row, f"{name}, line {number}")
        value = text_of(row[text_field], text_field, f"{name}, line {number}")
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON can spell out half of a surrogate pair, which is no text
            raise DataError(
                f"{name}, line {number}: character {error.start} of {text_field!r} is half of a surrogate pair:"
                " correct or remove that line"
            ) from error
        yield value


def _csv(file: BinaryIO, name: str, text_field: str) -> Iterator[str]:
    csv.field_size_limit(sys.maxsize)  # documents are longer than the 128 KiB that the module allows by default
    rows = csv.DictReader(_decoded_lines(file, name), strict=True)
    if rows.fieldnames is None:
        return
    need_column(text_field, rows.fieldnames, name)
    try:
        for row in rows:
            place = f"{name}, line {rows.line_num}"
            if row[text_field] is None:
                raise DataError(f"{place}: the row ends before column {text_field!r}: correct or remove that row")
            yield text_of(row[text_field], text_field, place)
    except csv.Error as error:
        raise DataError(
            f"{name}, line {rows.reader.line_num} is not CSV ({error}): correct or remove that row"
        ) from error


def _decoded_lines(file: BinaryIO, name: str) -> Iterator[str]:
    start = 0
    for line in file:
        yield _decode(line, name, start)
        start += len(line)


def _parquet(file: BinaryIO, name: str, text_field: str) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
        need_column(text_field, table.schema_arrow.names, name)
        batches = table.iter_batches(batch_size=_BATCH_ROWS, columns=[text_field])
        yield from _column(batches, name, text_field)
    except pyarrow.ArrowException as error:
        raise _damaged(name, error) from error


def _arrow(file: BinaryIO, name: str, text_field: str) -> Iterator[str]:
    import pyarrow
    from pyarrow import ipc

    magic = file.read(6)
    file.seek(0)
    try:
        if magic == b"ARROW1":  # the file format, which is feather too; `datasets` writes the stream format
            reader = ipc.open_file(file)
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        else:
            reader = ipc.open_stream(file)
            batches = iter(reader)
        need_column(text_field, reader.schema.names, name)
        yield from _column((batch.select([text_field]) for batch in batches), name, text_field)
    except pyarrow.ArrowException as error:
        raise _damaged(name, error) from error


def _column(batches: Iterable[Any], name: str, text_field: str) -> Iterator[str]:
    """The texts of one-column record batches."""
    row = 0
    for batch in batches:
        try:
            values = batch.column(0).to_pylist()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}, rows {row} to {row + batch.num_rows - 1}: byte {error.start} of a text does not decode as UTF-8:"
                " write the file again with valid text"
            ) from error
        for value in values:
            yield text_of(value, text_field, f"{name}, row {row}")
            row += 1


_READERS: dict[str, Callable[[BinaryIO, str, str], Iterator[str]]] = {
    "text": _text,
    "python": _python,
    "jsonl": _jsonl,
    "csv": _csv,
    "parquet": _parquet,
    "arrow": _arrow,
}


def text_of(value: object, text_field: str, place: str) -> str:
    """A missing value (null) is a blank document, as other loaders have it."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{place}: {text_field!r} holds {type(value).__name__}, not text: set data.text_field")
    return value


def need_column(text_field: str, columns: Iterable[str], place: str) -> None:
    names = list(columns)
    if text_field not in names:
        raise DataError(
            f"{place} has no column {text_field!r}; it has {', '.join(map(repr, names)) or 'none'}: set data.text_field"
        )


def _undecodable(name: str, offset: int, byte: int, encoding: str) -> DataError:
    return DataError(
        f"{name}: byte {offset} (0x{byte:02x}) does not decode as {encoding}: convert the file to UTF-8"
        f" (for example `iconv -f latin1 -t utf-8`), or leave it out of data.files"
    )


def _damaged(name: str, error: Exception) -> DataError:
    return DataError(f"{name} is damaged ({error}): fetch or write it again, or leave it out of data.files")
