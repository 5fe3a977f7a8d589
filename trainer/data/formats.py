"""Documents out of the bytes of one data shard, streamed: text, jsonl, csv, parquet and Arrow, compressed or not.

What cannot be read is a BadData that names the shard and the place in it: what is left out with it, `Reading.on_bad` decides.
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
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

from fsspec.spec import AbstractBufferedFile

from zerofleet.trainer.data.bad_data import BadData, Lost, Reading, stop
from zerofleet.trainer.data.columns import (
    checked_text,
    damaged,
    is_about_bytes,
    need_column,
    read_arrow,
    read_parquet,
    too_long,
)
from zerofleet.trainer.errors import DataError, StorageError


def _zstd(raw: BinaryIO) -> BinaryIO:
    import pyarrow  # Python's own zstd comes with 3.14

    return cast(BinaryIO, io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd")))


DECOMPRESSORS: dict[str, Callable[[BinaryIO], BinaryIO]] = {
    ".gz": lambda raw: cast(BinaryIO, gzip.GzipFile(fileobj=raw)),
    ".bz2": lambda raw: cast(BinaryIO, bz2.BZ2File(raw)),
    ".xz": lambda raw: cast(BinaryIO, lzma.LZMAFile(raw)),  # noqa: SIM115 - it ends with the file it reads
    ".zst": _zstd,
}
_SKIPPED_BYTES = 2**20
"""Of a line that is too long, read and dropped at a time."""
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
def reading_errors(reading: Reading) -> Iterator[None]:
    """Turns what goes wrong while a shard is read into an error that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise BadData(
            f"{reading.name} is gone since the corpus was listed",
            f"bring it back, or take it out of {reading.section}.files",
            "shard",
        ) from error
    except PermissionError as error:
        raise DataError(f"{reading.name} cannot be read (permission denied): make it readable for this user") from error
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if is_about_bytes(error):
            raise damaged(reading, reading.name, error) from error
        raise StorageError(
            f"reading {reading.name} failed ({str(error) or type(error).__name__}): check that it can be reached, then try again"
        ) from error


def read_documents(raw: BinaryIO, format_name: str, compression: str, reading: Reading) -> Iterator[str]:
    """The documents of one opened shard, blank ones included; `format_name` and `compression` as `format_of` gives them.

    Raises BadData for what makes it impossible to read on; what can be passed over is told to `reading.on_bad`.
    """
    if isinstance(raw, AbstractBufferedFile) and (compression or format_name not in ("parquet", "arrow")):
        raw = cast(BinaryIO, io.BufferedReader(cast(Any, raw)))  # fsspec's own reads whole lines only, however long
    file = DECOMPRESSORS[compression](raw) if compression else raw
    if compression and format_name in ("parquet", "arrow"):
        file = io.BytesIO(file.read())  # these seek, which is slow or impossible in a compressed stream
    return _READERS[format_name](file, reading)


def _decode(data: bytes, reading: Reading, start: int = 0, encoding: str = "utf-8", lost: Lost = "rest") -> str:
    """Text of `data`, which begins at byte `start` of the shard."""
    mark = len(codecs.BOM_UTF8) if start == 0 and data.startswith(codecs.BOM_UTF8) else 0
    try:
        return data[mark:].decode(encoding)
    except UnicodeDecodeError as error:
        at = mark + error.start
        raise BadData(
            f"{reading.name}: byte {start + at} (0x{data[at]:02x}) does not decode as {encoding}",
            "convert the file to UTF-8 (for example `iconv -f latin1 -t utf-8`)",
            lost,
        ) from error


def _whole(file: BinaryIO, reading: Reading) -> bytes:
    """All bytes of a shard that is one document."""
    data = file.read(reading.max_bytes + 1)
    if len(data) > reading.max_bytes:
        raise too_long(reading.name, reading, "document")
    return data


def _text(file: BinaryIO, reading: Reading) -> Iterator[str]:
    """One document: the whole file."""
    yield _decode(_whole(file, reading), reading)


def _python(file: BinaryIO, reading: Reading) -> Iterator[str]:
    """One document: Python source in the encoding its coding cookie names (PEP 263), line ends as Python reads them."""
    data = _whole(file, reading)
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    except SyntaxError as error:
        if "unknown encoding" in str(error):
            raise BadData(f"{reading.name}: {error}", "correct its coding cookie") from error
        encoding = "utf-8"  # its first lines do not decode: say where
    text = _decode(data, reading, encoding="utf-8" if encoding == "utf-8-sig" else encoding)
    yield text.replace("\r\n", "\n").replace("\r", "\n")


def _lines(file: BinaryIO, reading: Reading, on_long: Callable[[BadData], None]) -> Iterator[tuple[int, int, bytes]]:
    """(number from 1, first byte, bytes) of each line; of one that is too long no more than `max_bytes` are ever in memory."""
    number = start = 0
    while line := file.readline(reading.max_bytes + 1):
        number += 1
        first, start = start, start + len(line)
        if len(line) <= reading.max_bytes:
            yield number, first, line
            continue
        on_long(too_long(f"{reading.name}, line {number}", reading, "line"))
        while line and not line.endswith(b"\n"):
            line = file.readline(_SKIPPED_BYTES)
            start += len(line)


def _jsonl(file: BinaryIO, reading: Reading) -> Iterator[str]:
    for number, start, line in _lines(file, reading, reading.on_bad):
        place = f"{reading.name}, line {number}"
        try:
            text = _decode(line, reading, start, lost="document")
            if text.strip():
                yield from checked_text(_value_of(text, reading, place), reading, place)
        except BadData as error:
            reading.on_bad(error)


def _value_of(text: str, reading: Reading, place: str) -> object:
    """What a line of JSON holds under the key of the texts. BadData when there is none."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        remedy = "correct or remove that line; jsonl has one object per line"
        raise BadData(f"{place} is not JSON ({error})", remedy, "document") from error
    if not isinstance(row, dict):
        raise BadData(f"{place} is a JSON {type(row).__name__}", "jsonl has one object per line", "document")
    if reading.text_field not in row:
        there = ", ".join(map(repr, row)) or "none"
        what = f"{place} has no column {reading.text_field!r}; it has {there}"
        raise BadData(what, f"set {reading.section}.text_field", "document")
    value = row[reading.text_field]
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON can spell out half of a surrogate pair, which is no text
            what = f"{place}: character {error.start} of {reading.text_field!r} is half of a surrogate pair"
            raise BadData(what, "correct or remove that line", "document") from error
    return value


def _csv(file: BinaryIO, reading: Reading) -> Iterator[str]:
    """Where a row cannot be read, neither can where the next one begins: what follows is lost with it."""
    csv.field_size_limit(
        min(reading.max_bytes, sys.maxsize)
    )  # documents are longer than the 128 KiB of the module's default
    rows = csv.DictReader(_decoded_lines(file, reading), strict=True)
    try:
        if rows.fieldnames is None:
            return
        need_column(rows.fieldnames, reading, reading.name)
        for row in rows:
            place = f"{reading.name}, line {rows.line_num}"
            if row[reading.text_field] is None:
                what = f"{place}: the row ends before column {reading.text_field!r}"
                reading.on_bad(BadData(what, "correct or remove that row", "document"))
                continue
            yield from checked_text(row[reading.text_field], reading, place)
    except csv.Error as error:
        if "field limit" in str(error):
            raise too_long(f"{reading.name}, line {rows.reader.line_num}", reading, "document") from error
        what = f"{reading.name}, line {rows.reader.line_num} is not CSV ({error})"
        raise BadData(what, "correct or remove that row") from error


def _decoded_lines(file: BinaryIO, reading: Reading) -> Iterator[str]:
    for _, start, line in _lines(file, reading, stop):
        yield _decode(line, reading, start)


_READERS: dict[str, Callable[[BinaryIO, Reading], Iterator[str]]] = {
    "text": _text,
    "python": _python,
    "jsonl": _jsonl,
    "csv": _csv,
    "parquet": read_parquet,
    "arrow": read_arrow,
}
