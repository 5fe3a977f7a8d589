"""Documents out of columnar files: parquet and Arrow, a row group or record batch at a time."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from zerofleet.trainer.data.bad_data import BadData, Lost, Reading

_BATCH_ROWS = 512
"""Rows that are decoded at once."""


def read_parquet(file: BinaryIO, reading: Reading) -> Iterator[str]:
    """A row group that cannot be decoded costs what is left of it, no other."""
    import pyarrow
    from pyarrow import parquet

    try:
        # Pages carry a checksum where their writer was asked for one; without it only what does not decode is noticed.
        table = parquet.ParquetFile(file, page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise damaged(reading, reading.name, error) from error
    need_column(table.schema_arrow.names, reading, reading.name)
    row = 0
    for group in range(table.num_row_groups):
        end = row + table.metadata.row_group(group).num_rows
        batches = table.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group], columns=[reading.text_field])
        yield from _group(batches, reading, row, end, f"row group {group}", pyarrow.ArrowException)
        row = end


def read_arrow(file: BinaryIO, reading: Reading) -> Iterator[str]:
    """The file format (feather too) record batch by record batch; of a stream, what follows a bad batch cannot be found."""
    import pyarrow
    from pyarrow import ipc

    magic = file.read(6)
    file.seek(0)
    try:
        reader = ipc.open_file(file) if magic == b"ARROW1" else ipc.open_stream(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise damaged(reading, reading.name, error) from error
    need_column(reader.schema.names, reading, reading.name)
    row = 0
    if magic != b"ARROW1":  # `datasets` writes the stream format
        try:
            for batch in reader:
                yield from _values(batch.select([reading.text_field]), reading, row)
                row += batch.num_rows
        except (pyarrow.ArrowException, OSError) as error:
            raise damaged(reading, f"{reading.name}, rows from {row} on", error) from error
        return
    for index in range(reader.num_record_batches):
        try:
            batch = reader.get_batch(index).select([reading.text_field])
        except (pyarrow.ArrowException, OSError) as error:
            reading.on_bad(damaged(reading, f"{reading.name}, record batch {index}", error, "rows"))
            continue  # rows are counted without it: how many it had is not known
        yield from _values(batch, reading, row)
        row += batch.num_rows


def _group(
    batches: Iterator[Any], reading: Reading, row: int, end: int, what: str, arrow_error: type[Exception]
) -> Iterator[str]:
    """The documents of one row group, rows [row, end); what cannot be decoded ends it."""
    while True:
        try:
            batch = next(batches, None)
        except (arrow_error, OSError) as error:
            reading.on_bad(damaged(reading, f"{reading.name}, {what}, rows {row} to {end - 1}", error, "rows"))
            return
        if batch is None:
            return
        yield from _values(batch, reading, row)
        row += batch.num_rows


def _values(batch: Any, reading: Reading, row: int) -> Iterator[str]:
    """The texts of a one-column record batch whose first row is `row`."""
    try:
        values = batch.column(0).to_pylist()
    except UnicodeDecodeError:
        values = _decoded(batch.column(0), reading, row)
    for number, value in enumerate(values, row):
        yield from checked_text(value, reading, f"{reading.name}, row {number}")


def _decoded(column: Any, reading: Reading, row: int) -> Iterator[object]:
    """One value at a time, since one of them does not decode."""
    for number, scalar in enumerate(column, row):
        try:
            yield scalar.as_py()
        except UnicodeDecodeError as error:
            reading.on_bad(
                BadData(
                    f"{reading.name}, row {number}: byte {error.start} of the text does not decode as UTF-8",
                    "write the file again with valid text",
                    "document",
                )
            )


def checked_text(value: object, reading: Reading, place: str) -> Iterator[str]:
    """The document that a value is, or none; a missing value (null) is a blank one, as other loaders have it."""
    if value is None:
        yield ""
    elif not isinstance(value, str):
        what = f"{place}: {reading.text_field!r} holds {type(value).__name__}, not text"
        reading.on_bad(BadData(what, f"set {reading.section}.text_field", "document"))
    elif len(value) > reading.max_bytes // 4 and len(value.encode(errors="replace")) > reading.max_bytes:
        reading.on_bad(too_long(place, reading, "document"))
    else:
        yield value


def need_column(columns: Iterable[str], reading: Reading, place: str) -> None:
    """BadData for all that follows when the column of texts is not there."""
    names = list(columns)
    if reading.text_field not in names:
        there = ", ".join(map(repr, names)) or "none"
        raise BadData(
            f"{place} has no column {reading.text_field!r}; it has {there}", f"set {reading.section}.text_field"
        )


def too_long(place: str, reading: Reading, what: str) -> BadData:
    """`what` is a document or a line that would take more memory than a preparation may."""
    return BadData(
        f"{place}: a {what} of more than {reading.max_bytes} bytes",
        "cut it into several, or raise data.max_document_bytes (a process takes several times as much memory)",
        "document",
    )


def damaged(reading: Reading, place: str, error: Exception, lost: Lost = "rest") -> BadData:
    """What a decoder or decompressor says is wrong. An error that is not about the bytes is raised."""
    if not is_about_bytes(error):
        raise error
    remedy = f"fetch or write it again, or take the file out of {reading.section}.files"
    return BadData(f"{place} is damaged ({' '.join(str(error).split())})", remedy, lost)


def is_about_bytes(error: Exception) -> bool:
    """Whether a decoder or decompressor says it. bz2 and pyarrow do so by a plain OSError without a number: one with a number is the
    system's, one of another class that of who fetches the bytes, such as a timeout or a connection that broke. That is over some day, and what is
    left out is left out for good."""
    return not isinstance(error, OSError) or (type(error) in (OSError, gzip.BadGzipFile) and error.errno is None)
