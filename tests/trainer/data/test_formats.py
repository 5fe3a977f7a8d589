"""Every format and compression gives the same documents; what cannot be read is named with its place."""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import itertools
import json
import lzma

import pyarrow as pa
import pytest
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.local import LocalFileSystem
from pyarrow import feather, ipc, parquet

from tests.trainer.data.corpora import document
from zerofleet.trainer.config import DataConfig
from zerofleet.trainer.data.sources import resolve
from zerofleet.trainer.errors import DataError, StorageError

TEXTS = [document(seed, 30) for seed in range(5)] + ['quoted "text",\nover lines', "", "x" * 200_000]
TABLE = pa.table({"id": range(len(TEXTS)), "text": TEXTS})


def as_csv(texts, column="text"):
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(["id", column])
    writer.writerows(enumerate(texts))
    return out.getvalue().encode()


def as_bytes(write):
    sink = io.BytesIO()
    write(sink)
    return sink.getvalue()


def write_stream(sink):
    with ipc.new_stream(sink, TABLE.schema) as writer:
        writer.write_table(TABLE)


FILES = {
    "a.jsonl": b"".join(json.dumps({"id": 1, "text": text}).encode() + b"\n" for text in TEXTS),
    "a.json": "\n\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS).encode(),
    "a.csv": as_csv(TEXTS),
    "a.parquet": as_bytes(lambda sink: parquet.write_table(TABLE, sink, row_group_size=3)),
    "a.arrow": as_bytes(lambda sink: feather.write_feather(TABLE, sink)),
    "b.arrow": as_bytes(write_stream),
}
COMPRESS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


def read(folder, name, data, **fields):
    (folder / name).write_bytes(data)
    return [
        text for shard in resolve(DataConfig(files=[str(folder / name)], **fields)).shards for text in shard.documents()
    ]


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("name", FILES)
def test_documents_of_every_format_and_compression(tmp_path, name, ending):
    assert read(tmp_path, name + ending, COMPRESS[ending](FILES[name])) == TEXTS


@pytest.mark.parametrize("ending", COMPRESS)
def test_text_is_one_document_per_file(tmp_path, ending):
    text = "first\r\n\r\nsecond 日本\n"
    assert read(tmp_path, "a.md" + ending, COMPRESS[ending](text.encode())) == [text]


def test_the_format_can_be_said(tmp_path):
    assert read(tmp_path, "a.data", FILES["a.jsonl"], format="jsonl") == TEXTS
    assert read(tmp_path, "a.jsonl", FILES["a.jsonl"], format="text") == [FILES["a.jsonl"].decode()]


def test_the_column_can_be_said_and_null_is_blank(tmp_path):
    assert read(tmp_path, "a.csv", as_csv(["one", "two"], "body"), text_field="body") == ["one", "two"]
    assert read(tmp_path, "a.jsonl", b'{"text": null}\n{"text": "x"}') == ["", "x"]


def test_a_byte_order_mark_is_no_text(tmp_path):
    for name, data in [("a.txt", b"x"), ("a.py", b"x"), ("a.csv", b"text\nx"), ("a.jsonl", b'{"text": "x"}')]:
        assert read(tmp_path, name, b"\xef\xbb\xbf" + data) == ["x"]


def test_python_source_is_decoded_as_its_cookie_says(tmp_path):
    source = "# -*- coding: {} -*-\nname = 'é'\r\n"
    for encoding in ("latin-1", "utf-8", "cp1252"):
        text = source.format(encoding)
        assert read(tmp_path, "a.py", text.encode(encoding)) == [text.replace("\r\n", "\n")]


def failure(folder, name, data, **fields) -> str:
    with pytest.raises(DataError) as caught:
        read(folder, name, data, **fields)
    message = str(caught.value)
    assert str(folder / name) in message
    return message


def test_undecodable_bytes_are_named_with_their_offset(tmp_path):
    bad = "é".encode("latin-1")
    assert "byte 6 (0xe9) does not decode as utf-8" in failure(tmp_path, "a.txt", b"123456" + bad + b"x")
    assert "byte 9 (0xe9)" in failure(tmp_path, "b.txt", b"\xef\xbb\xbf123456" + bad)
    assert "byte 25 (0xe9)" in failure(tmp_path, "a.jsonl", b'{"text": "a"}\n{"text": "a' + bad + b'"}\n')
    assert "byte 12 (0xe9)" in failure(tmp_path, "a.csv", b"id,text\n1,ab" + bad + b"\n")
    assert "byte 2 (0xe9)" in failure(tmp_path, "a.py", b"# " + bad + b"\n")
    assert "byte 40 (0xe9)" in failure(tmp_path, "b.py", b"# 123456\n# 123456\nname = 1\nother = 'abcd" + bad + b"'")
    assert "byte 2 (0xe9)" in failure(tmp_path, "a.txt.gz", gzip.compress(b"ab" + bad))
    array = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xe9")])
    table = pa.table({"text": array})
    assert "row 0: byte 1" in failure(tmp_path, "a.parquet", as_bytes(lambda sink: parquet.write_table(table, sink)))


def test_an_unknown_cookie_is_named(tmp_path):
    assert "unknown encoding" in failure(tmp_path, "a.py", b"# coding: nonesuch\n")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_column_names_those_there_are(tmp_path, name):
    message = failure(tmp_path, name, FILES[name], text_field="body")
    assert "no column 'body'" in message and "'text'" in message and "data.text_field" in message


def test_corrupt_lines_are_named(tmp_path):
    good = b'{"text": "x"}\n'
    assert "line 3 is not JSON" in failure(tmp_path, "a.jsonl", good + good + b'{"text": "x\n')
    assert "line 2 is a JSON list" in failure(tmp_path, "a.jsonl", good + b"[1]\n")
    assert "line 1: 'text' holds int" in failure(tmp_path, "a.jsonl", b'{"text": 3}\n')
    assert "line 1: character 1" in failure(tmp_path, "a.jsonl", b'{"text": "x\\ud800"}\n')
    assert "line 3: the row ends" in failure(tmp_path, "a.csv", b"id,text\n1,x\n2\n")
    assert "line 3 is not CSV" in failure(tmp_path, "a.csv", b'id,text\n1,x\n2,"x"y\n')


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.bz2", "a.txt.xz", "a.txt.zst"])
@pytest.mark.parametrize("how", ["cut", "garbage"])
def test_damaged_compression_is_named(tmp_path, name, how):
    data = COMPRESS[name.removeprefix("a.txt")](document(1, 3000).encode())
    assert "is damaged" in failure(tmp_path, name, data[: len(data) // 2] if how == "cut" else b"garbage" + data[7:])


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "b.arrow"])
@pytest.mark.parametrize("how", ["cut", "garbage", "empty"])
def test_damaged_columnar_files_are_named(tmp_path, name, how):
    data = {"cut": FILES[name][: len(FILES[name]) // 2], "garbage": b"garbage" * 100, "empty": b""}[how]
    assert "is damaged" in failure(tmp_path, name, data)


def test_empty_files_of_lines_hold_no_documents(tmp_path):
    assert read(tmp_path, "a.jsonl", b"") == read(tmp_path, "a.csv", b"") == []
    assert read(tmp_path, "a.txt", b"") == [""]


def test_numbers_instead_of_text_are_named(tmp_path):
    assert "row 0: 'id' holds int" in failure(tmp_path, "a.parquet", FILES["a.parquet"], text_field="id")


class LineThatDrops(io.BytesIO):
    """Gives so many reads, then an error."""

    def __init__(self, data: bytes, num_reads: int, error: Exception) -> None:
        super().__init__(data)
        self.num_reads, self.error = num_reads, error

    def _count(self) -> None:
        self.num_reads -= 1
        if self.num_reads < 0:
            raise self.error

    def read(self, size=-1):
        self._count()
        return super().read(size)

    def readline(self, size=-1):
        self._count()
        return super().readline(size)


class RequestException(OSError):
    """As the clients of some stores have it: no number, and none of Python's own classes."""


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("name", ["a.txt", *FILES])
def test_a_network_that_fails_at_any_read_is_no_bad_data(tmp_path, monkeypatch, name, ending):
    """Under quarantine good data would be left out for good."""
    data = COMPRESS[ending](FILES.get(name, TEXTS[0].encode()))
    (tmp_path / (name + ending)).write_bytes(data)
    (shard,) = resolve(DataConfig(files=[str(tmp_path / (name + ending))])).shards
    whole, bad = list(shard.documents()), []
    for error in (
        FSTimeoutError(),
        ConnectionResetError("peer"),
        TimeoutError(110, "timed out"),
        RequestException("503"),
    ):
        for num_reads in itertools.count():
            line = LineThatDrops(data, num_reads, error)
            monkeypatch.setattr(LocalFileSystem, "open", lambda self, *arguments, line=line: line)
            if num_reads == 0:
                with pytest.raises(StorageError, match="check that it can be reached"):
                    list(shard.documents(bad.append))
                continue
            with contextlib.suppress(StorageError):
                assert list(shard.documents(bad.append)) == whole
                break
    assert bad == []
