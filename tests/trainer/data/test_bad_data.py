"""Data that cannot be read: it is named and stops the preparation, or it is left out, counted and named in the cache."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather, parquet

from tests.trainer.data.corpora import document, prepared, quiet, write_corpus
from zerofleet.trainer.config import DataConfig
from zerofleet.trainer.data import parts
from zerofleet.trainer.data import prepare as prepare_module
from zerofleet.trainer.data.bad_data import BadData
from zerofleet.trainer.data.cache import DataCache
from zerofleet.trainer.data.left_out import NAMED, LeftOut, Notes
from zerofleet.trainer.data.prepare import prepare
from zerofleet.trainer.data.sources import FileShard, resolve
from zerofleet.trainer.errors import DataError, StorageError


def documents(path: Path | str, **fields) -> tuple[list[str], list[BadData]]:
    """What a file gives under quarantine, and what it loses."""
    bad: list[BadData] = []
    shards = resolve(DataConfig(files=[str(path)], **fields)).shards
    return [text for shard in shards for text in shard.documents(bad.append)], bad


def lines(*values: object) -> bytes:
    return b"".join(
        value if isinstance(value, bytes) else json.dumps({"text": value}).encode() + b"\n" for value in values
    )


# -- what is lost ------------------------------------------------------------------------------------------------------
def test_a_bad_line_of_json_costs_that_line(tmp_path):
    path = tmp_path / "a.jsonl"
    wrong = [
        b'{"text": "\xff"}\n',
        b"{\n",
        b"[1]\n",
        b'{"body": "x"}\n',
        b'{"text": 3}\n',
        b'{"text": "\\ud800"}\n',
        b"[" * 100_000 + b"\n",
    ]
    path.write_bytes(lines("first", *wrong, "last"))
    found, bad = documents(path)
    assert found == ["first", "last"]
    assert [error.lost for error in bad] == ["document"] * len(wrong)
    for number, error in enumerate(bad[1:], 3):
        assert f"a.jsonl, line {number}" in error.what
    assert (
        "byte 28 (0xff)" in bad[0].what and "is not JSON" in bad[1].what and "half of a surrogate pair" in bad[5].what
    )


def test_a_bad_row_of_csv_costs_that_row_or_all_from_there_on(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"id,text\n1,first\n2\n3,third\n")
    assert documents(path)[0] == ["first", "third"]
    path.write_bytes(b'id,text\n1,first\n2,"x"y\n3,third\n')
    found, bad = documents(path)
    assert found == ["first"] and [error.lost for error in bad] == ["rest"] and "line 3 is not CSV" in bad[0].what
    path.write_bytes(b"id,text\n1,first\n2,\xff\n3,third\n")
    assert documents(path)[0] == ["first"]
    path.write_bytes(b"id,body\n1,first\n")
    found, bad = documents(path)
    assert found == [] and "has no column 'text'" in bad[0].what


def test_a_file_that_is_one_document_is_lost_whole(tmp_path):
    for name, data, problem in (
        ("a.txt", b"abc\xff", "byte 3 (0xff)"),
        ("a.py", b"# coding: nonesuch\n", "unknown encoding"),
        ("a.txt.gz", gzip.compress(b"text" * 999)[:-9], "is damaged"),
    ):
        (tmp_path / name).write_bytes(data)
        found, bad = documents(tmp_path / name)
        assert found == [] and len(bad) == 1 and problem in bad[0].what


def test_of_a_compressed_file_that_is_cut_what_comes_before_is_kept(tmp_path):
    texts = [document(number) for number in range(2000)]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(*texts))[:-5000])
    found, bad = documents(tmp_path / "a.jsonl.gz")
    assert 0 < len(found) < 2000 and found == texts[: len(found)]
    assert [error.lost for error in bad] == ["rest"] and "is damaged" in bad[0].what


def test_a_corrupt_row_group_costs_that_row_group(tmp_path):
    texts = [document(number) for number in range(40)]
    path = tmp_path / "a.parquet"
    parquet.write_table(
        pa.table({"text": texts}), path, row_group_size=10, write_page_checksum=True, use_dictionary=False
    )
    data = bytearray(path.read_bytes())
    column = parquet.ParquetFile(path).metadata.row_group(2).column(0)
    middle = column.data_page_offset + column.total_compressed_size // 2
    data[middle : middle + 8] = b"\xaa" * 8
    path.write_bytes(data)
    found, bad = documents(path)
    assert found == texts[:20] + texts[30:]
    assert [error.lost for error in bad] == ["rows"] and "row group 2, rows 20 to 29 is damaged" in bad[0].what


def test_text_that_does_not_decode_costs_its_row(tmp_path):
    values = pa.py_buffer(b"a\xe9bc")
    array = pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(np.array([0, 1, 2, 4], "<i4").tobytes()), values])
    parquet.write_table(pa.table({"text": array}), tmp_path / "a.parquet")
    found, bad = documents(tmp_path / "a.parquet")
    assert found == ["a", "bc"] and "row 1: byte 0" in bad[0].what and bad[0].lost == "document"


def test_a_damaged_record_batch_and_a_cut_file_of_arrow(tmp_path):
    texts = [document(number) for number in range(40)]
    sink = io.BytesIO()
    feather.write_feather(pa.table({"text": texts}), sink, compression="zstd", chunksize=10)
    data = bytearray(sink.getvalue())
    frames = [
        at for at in range(len(data)) if data[at : at + 4] == b"\x28\xb5\x2f\xfd"
    ]  # of zstd: offsets and text of each batch
    assert len(frames) == 8
    data[frames[5] : frames[5] + 4] = b"none"
    (tmp_path / "a.arrow").write_bytes(data)
    found, bad = documents(tmp_path / "a.arrow")
    assert found == texts[:20] + texts[30:]
    assert [error.lost for error in bad] == ["rows"] and "record batch 2 is damaged" in bad[0].what
    (tmp_path / "a.arrow").write_bytes(sink.getvalue()[: len(data) // 2])
    found, bad = documents(tmp_path / "a.arrow")
    assert found == [] and len(bad) == 1 and "is damaged" in bad[0].what


def test_an_empty_file_is_no_error_unless_its_format_needs_a_header(tmp_path):
    for name in ("a.txt", "a.jsonl", "a.csv"):
        (tmp_path / name).write_bytes(b"")
        found, bad = documents(tmp_path / name)
        assert "".join(found) == "" and bad == []
    (tmp_path / "a.parquet").write_bytes(b"")
    assert "is damaged" in documents(tmp_path / "a.parquet")[1][0].what


def test_a_document_that_is_too_long(tmp_path):
    limit = {"max_document_bytes": 1000}
    (tmp_path / "a.jsonl").write_bytes(lines("first", "x" * 5000, "last"))
    found, bad = documents(tmp_path / "a.jsonl", **limit)
    assert found == ["first", "last"] and "line 2: a line of more than 1000 bytes" in bad[0].what
    (tmp_path / "a.txt").write_text("x" * 1001)
    assert "a document of more than 1000 bytes" in documents(tmp_path / "a.txt", **limit)[1][0].what
    (tmp_path / "b.txt").write_text("x" * 1000)
    assert documents(tmp_path / "b.txt", **limit) == (["x" * 1000], [])
    (tmp_path / "a.csv").write_text("id,text\n1,first\n2," + "x" * 5000 + "\n3,last\n")
    found, bad = documents(tmp_path / "a.csv", **limit)
    assert found == ["first"] and "line 3: a line of more than 1000 bytes" in bad[0].what and bad[0].lost == "rest"
    (tmp_path / "b.csv").write_text('id,text\n1,first\n2,"' + "xxxx\n" * 5000 + '"\n')
    assert "a document of more than 1000 bytes" in documents(tmp_path / "b.csv", **limit)[1][0].what
    parquet.write_table(pa.table({"text": ["é" * 501, "é" * 500]}), tmp_path / "a.parquet")
    found, bad = documents(tmp_path / "a.parquet", **limit)
    assert found == ["é" * 500] and "row 0: a document of more than 1000 bytes" in bad[0].what


def test_a_remote_line_that_is_too_long(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe({"/lines/a.jsonl": lines("first", "x" * 5000, "last")})
    try:
        assert documents("memory://lines/a.jsonl", max_document_bytes=1000)[0] == ["first", "last"]
    finally:
        memory.rm("/lines", recursive=True)


LONG_LINE = """
import resource, sys
from zerofleet.trainer.config import DataConfig
from zerofleet.trainer.data.sources import resolve
shard = resolve(DataConfig(files=[sys.argv[1]], max_document_bytes=2**20)).shards[0]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
bad = []
texts = list(shard.documents(bad.append))
assert texts == ["first", "last"] and len(bad) == 1, (texts, bad)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.integration
@pytest.mark.timeout(60)
def test_a_line_of_a_gigabyte_takes_no_gigabyte(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:  # sparse: zeros between the quotes
        file.write(lines("first") + b'{"text": "')
        file.seek(10**9, io.SEEK_CUR)
        file.write(b'"}\n' + lines("last"))
    grown_kib = int(
        subprocess.run([sys.executable, "-c", LONG_LINE, str(path)], check=True, capture_output=True, text=True).stdout
    )
    assert grown_kib < 64 * 1024


# -- files that go or change -------------------------------------------------------------------------------------------
@pytest.fixture
def changing(tmp_path, monkeypatch):
    """`changing(act)`: runs `act(path)` when 020.txt has been listed, and before its documents are read."""
    files = write_corpus(tmp_path / "corpus")
    monkeypatch.setattr(parts, "_BATCH_CHARS", 500)

    def change(act):
        read = FileShard.documents

        def documents(self, *arguments):
            first = True
            for text in read(self, *arguments):
                yield text
                if first and self.name.endswith("020.txt"):
                    act(Path(self.name))
                first = False

        monkeypatch.setattr(FileShard, "documents", documents)
        return files

    return change


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (
            lambda path: path.write_text("another text"),
            r"020\.txt changed while it was prepared \(\d+ bytes when it was listed, 12 now\)",
        ),
        (lambda path: path.unlink(missing_ok=True), r"020\.txt is gone since the corpus was listed"),
    ],
)
def test_a_file_that_changes_or_goes_while_it_is_read(changing, tmp_path, monkeypatch, act, says):
    tokenizer = str(prepared(write_corpus(tmp_path / "other", 2), tmp_path / "tokenizers").tokenizer_path)
    files = changing(act)
    with pytest.raises(DataError, match=says):
        prepared(files, tmp_path / "cache", tokenizer=tokenizer)
    (tmp_path / "corpus/020.txt").write_text(document(20))
    cache = prepared(files, tmp_path / "cache", tokenizer=tokenizer, on_bad="quarantine")
    assert cache.left_out.num_bad == 1 and "the whole file: " in cache.left_out.named[0]
    monkeypatch.undo()
    (tmp_path / "corpus/020.txt").unlink(missing_ok=True)
    without = prepared(files, tmp_path / "cache", tokenizer=tokenizer)
    assert cache.fingerprint == without.fingerprint, "what had been read of it is taken back, nothing else"


def test_a_remote_file_that_changes_is_noticed_by_its_stores_hash_or_its_size(monkeypatch):
    memory = fsspec.filesystem("memory")
    memory.pipe({"/changing/a.txt": b"first"})
    kind = type(memory)
    info = kind.info

    def hashed(fs, found: dict) -> dict:
        return {**found, "ETag": str(hash(fs.cat(found["name"])))} if found["type"] == "file" else found

    try:
        with monkeypatch.context() as patch:
            patch.setattr(kind, "info", lambda fs, path: hashed(fs, info(fs, path)))
            (shard,) = resolve(DataConfig(files=["memory://changing/a.txt"])).shards
            assert shard.stamp == "ETag" and list(shard.documents()) == ["first"]
            memory.pipe({"/changing/a.txt": b"other"})
            with pytest.raises(BadData, match=r"changed while it was prepared \(5 bytes when it was listed, 5 now\)"):
                list(shard.documents())
        (shard,) = resolve(DataConfig(files=["memory://changing/a.txt"])).shards
        assert list(shard.documents()) == ["other"], "without a hash the size decides"
        memory.pipe({"/changing/a.txt": b"longer"})
        with pytest.raises(BadData, match=r"5 bytes when it was listed, 6 now"):
            list(shard.documents())
    finally:
        memory.rm("/changing", recursive=True)


def test_a_permission_is_no_bad_data(tmp_path, monkeypatch):
    """To leave a whole corpus out because its owner is another would be no service."""
    files = write_corpus(tmp_path / "corpus", 3)

    def refuse(self, *arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(fsspec.implementations.local.LocalFileSystem, "open", refuse)
    with pytest.raises(DataError, match="permission denied"):
        prepared(files, tmp_path / "cache", on_bad="quarantine")


def test_a_disk_that_fails_is_no_bad_data(tmp_path, monkeypatch):
    files = write_corpus(tmp_path / "corpus", 3)

    def fail(self, *arguments, **options):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(fsspec.implementations.local.LocalFileSystem, "open", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        prepared(files, tmp_path / "cache", on_bad="quarantine")


# -- what is said ------------------------------------------------------------------------------------------------------
def test_stop_names_it_and_says_how_to_go_on(tmp_path):
    files = write_corpus(tmp_path / "corpus", 3)
    (tmp_path / "corpus/001.txt").write_bytes(b"\xff")
    with pytest.raises(
        BadData, match=r"001\.txt: byte 0 .*convert the file.*or leave it out and go on \(data\.on_bad=quarantine\)"
    ):
        prepared(files, tmp_path / "cache")


def test_quarantine_leaves_out_counts_and_names(tmp_path):
    files = write_corpus(tmp_path / "corpus")
    reference = prepared(files, tmp_path / "cache", on_bad="quarantine")
    assert not reference.left_out and "left_out" not in json.loads((reference.path / "index.json").read_bytes())
    assert reference.fingerprint == prepared(files, tmp_path / "cache").fingerprint
    for name in ("a", "b"):
        (tmp_path / f"corpus/{name}.txt").write_bytes(b"abc\xff")
    said = []
    cache = prepared(files, tmp_path / "cache", on_bad="quarantine", progress=lambda *report: said.append(report))
    assert cache.fingerprint == reference.fingerprint, "the same documents are left"
    assert cache.left_out.num_bad == 2 and len(cache.left_out.named) == 2
    line = f"2 bad places left out (all from there on: {tmp_path}/corpus/a.txt: byte 3 (0xff) does not decode as utf-8; and 1 more)"
    assert said[-1][2].endswith(line)
    assert DataCache.open(cache.path).left_out == cache.left_out, "and whoever opens the cache later knows"
    again = prepared(files, tmp_path / "cache", on_bad="quarantine", progress=lambda *report: said.append(report))
    assert again.path == cache.path and said[-1][2].endswith(line)


def test_the_policy_is_part_of_the_caches_name_and_the_bound_only_with_it(tmp_path):
    files = write_corpus(tmp_path / "corpus", 3)
    stop = prepared(files, tmp_path / "cache").path
    assert prepared(files, tmp_path / "cache", max_document_bytes=10**6).path == stop
    first = prepared(files, tmp_path / "cache", on_bad="quarantine").path
    assert (
        first != stop
        and prepared(files, tmp_path / "cache", on_bad="quarantine", max_document_bytes=10**6).path != first
    )


def test_a_corpus_that_is_bad_altogether_is_refused_with_what_was_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines("x", "y"))
    with pytest.raises(DataError, match=r"corpus is empty.*2 bad places left out .*has no column 'body'"):
        prepared(f"{tmp_path}/a.jsonl", tmp_path / "cache", on_bad="quarantine", text_field="body")


def test_notes_of_a_part_that_was_kept_are_kept(tmp_path, monkeypatch):
    """The second try finds the first one's parts, and what they left out."""
    files = write_corpus(tmp_path / "corpus")
    (tmp_path / "corpus/003.txt").write_bytes(b"abc\xff")
    monkeypatch.setattr(parts, "_MIN_PART_BYTES", 1000)
    with monkeypatch.context() as patch:

        def fail(*arguments):
            raise KeyboardInterrupt

        patch.setattr(prepare_module, "write_cache", fail)
        with pytest.raises(KeyboardInterrupt):
            prepared(files, tmp_path / "cache", on_bad="quarantine")
    monkeypatch.setattr(parts, "tokenise_part", None)
    assert prepared(files, tmp_path / "cache", on_bad="quarantine").left_out.num_bad == 1


def test_messages_of_a_mixture_name_the_source(tmp_path):
    write_corpus(tmp_path / "web", 3)
    write_corpus(tmp_path / "code", 3)
    (tmp_path / "rows.jsonl").write_bytes(lines("x"))

    def refusal(**web) -> str:
        sources = {"web": {"weight": 1, **web}, "code": {"files": [f"{tmp_path}/code/*.txt"], "weight": 1}}
        with pytest.raises((DataError, StorageError)) as caught:
            prepare(
                DataConfig(
                    sources=sources, packing="best_fit", cache=str(tmp_path / "cache"), tokenizer_vocab_size=300
                ),
                0,
                quiet,
            )
        return str(caught.value)

    assert "data.sources.web.files: " in refusal(files=[f"{tmp_path}/nowhere/*"])
    assert "set data.sources.web.text_field" in refusal(files=[f"{tmp_path}/rows.jsonl"], text_field="body")
    (tmp_path / "broken.txt.gz").write_bytes(b"garbage")
    assert "take the file out of data.sources.web.files" in refusal(files=[f"{tmp_path}/broken.txt.gz"])


def test_bad_data_travels_between_processes():
    error = BadData("a.txt: byte 3", "convert it", "rows")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.what, again.remedy, again.lost) == (str(error), error.what, error.remedy, error.lost)
    assert str(Notes.from_bytes(Notes([error]).to_bytes()).bad[0]) == str(error)


def test_many_bad_places_are_counted_and_the_first_are_named():
    left_out = LeftOut.of(
        [Notes([BadData(f"{part}-{number}", "", "document") for number in range(700)]) for part in range(3)]
    )
    assert left_out.num_bad == 2100 and len(left_out.named) == NAMED
    assert left_out.named[700] == "a document: 1-0"
    assert LeftOut.from_dict(left_out.to_dict()) == left_out and left_out and not LeftOut.of([Notes()])
