"""A corpus is listed in a fixed order, once per file, from any file system; what is missing is named."""

from __future__ import annotations

import os
import sysconfig
import zipfile
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.trainer.data.corpora import write_corpus
from zerofleet.trainer.config import DataConfig
from zerofleet.trainer.data import sources
from zerofleet.trainer.data.sources import resolve
from zerofleet.trainer.errors import DataError, StorageError, UserError


def names(*files: str) -> list[str]:
    return [shard.name for shard in resolve(DataConfig(files=list(files))).shards]


def texts(*files: str) -> list[str]:
    return [text for shard in resolve(DataConfig(files=list(files))).shards for text in shard.documents()]


def test_globs_are_sorted_in_the_order_they_are_given_and_a_file_is_read_once(tmp_path):
    write_corpus(tmp_path / "b", 3)
    write_corpus(tmp_path / "a", 2)
    b, a = (f"{tmp_path}/{folder}" for folder in "ba")
    expected = [f"{b}/000.txt", f"{b}/001.txt", f"{b}/002.txt", f"{a}/000.txt", f"{a}/001.txt"]
    assert names(f"{b}/*.txt", f"{tmp_path}/**/*.txt", f"{a}/000.txt") == expected
    assert names(f"{tmp_path}/**") == expected[3:] + expected[:3]


def test_relative_and_home_paths(tmp_path, monkeypatch):
    write_corpus(tmp_path / "corpus", 2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (
        names("corpus/*.txt")
        == names("~/corpus/*.txt")
        == names(f"file://{tmp_path}/corpus/*.txt".replace("file://", ""))
    )


def test_a_name_with_brackets_is_taken_as_it_is(tmp_path):
    (tmp_path / "a[1].txt").write_text("brackets")
    assert texts(f"{tmp_path}/a[1].txt") == ["brackets"]


def test_other_file_systems(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe({"/corpus/a.txt": b"first", "/corpus/b.jsonl": b'{"text": "second"}\n'})
    assert texts("memory://corpus/*") == ["first", "second"]
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("in/third.txt", "third")
    chain = f"zip://in/*.txt::{tmp_path}/c.zip"
    assert texts(chain) == ["third"]
    assert names(chain) == [f"zip://in/third.txt::{tmp_path}/c.zip"]
    before = resolve(DataConfig(files=["memory://corpus/*"])).identity
    memory.pipe({"/corpus/a.txt": b"FIRST"})
    assert resolve(DataConfig(files=["memory://corpus/*"])).identity != before
    memory.rm("/corpus", recursive=True)


def test_the_identity_follows_names_sizes_and_times(tmp_path):
    files = write_corpus(tmp_path / "corpus", 3)

    def identity():
        return resolve(DataConfig(files=[files])).identity

    seen = [identity()]
    path = tmp_path / "corpus/001.txt"
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    seen.append(identity())
    path.write_text("longer or shorter")
    seen.append(identity())
    path.rename(tmp_path / "corpus/009.txt")
    seen.append(identity())
    assert identity() == seen[-1]
    assert all(first != second for index, first in enumerate(seen) for second in seen[:index])


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no/such\.txt' does not exist.*check the path"):
        names(f"{tmp_path}/no/such.txt")
    with pytest.raises(DataError, match=r"\*\.txt' matches no file"):
        names(f"{tmp_path}/*.txt")
    with pytest.raises(DataError, match=r"is a folder: name its files, for example .*/\*\*"):
        names(f"{tmp_path}/")
    with pytest.raises(DataError, match=r"memory://nowhere/a\.txt' does not exist"):
        names("memory://nowhere/a.txt")
    with pytest.raises(UserError, match="nonesuch"):
        names("nonesuch://bucket/a.txt")


def test_a_file_that_goes_after_listing_is_named(tmp_path):
    shard = resolve(DataConfig(files=[write_corpus(tmp_path / "corpus", 1)])).shards[0]
    Path(shard.name).unlink()
    with pytest.raises(DataError, match=r"000\.txt is gone"):
        list(shard.documents())


class Unreachable(MemoryFileSystem):
    """Fails as the clients of object stores do: with errors of their own."""

    protocol = "unreachable"

    def info(self, path, **options):
        raise LookupError("no credentials")


def test_a_store_that_cannot_be_reached_is_named():
    fsspec.register_implementation("unreachable", Unreachable, clobber=True)
    with pytest.raises(
        StorageError, match=r"unreachable://bucket/a\.txt cannot be reached \(LookupError: no credentials\)"
    ):
        names("unreachable://bucket/a.txt")


def test_the_standard_library_without_its_tests(tmp_path, monkeypatch):
    for path in (
        "b.py",
        "a.py",
        "json/decoder.py",
        "test/x.py",
        "json/tests/x.py",
        "site-packages/x.py",
        "__pycache__/x.py",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"# coding: latin-1\nname = '\xe9'\n")
    (tmp_path / "c.txt").write_text("no source")
    monkeypatch.setattr(sources, "stdlib_root", lambda: tmp_path)
    assert names("python-stdlib") == [str(tmp_path / path) for path in ("a.py", "b.py", "json/decoder.py")]
    assert texts("python-stdlib") == ["# coding: latin-1\nname = 'é'\n"] * 3


def test_files_of_this_python_are_named_without_its_folder(tmp_path, monkeypatch):
    (tmp_path / "json").mkdir()
    (tmp_path / "json/decoder.py").write_text("x")
    monkeypatch.setattr(sources, "stdlib_root", lambda: tmp_path)
    assert names("python-stdlib/*/*.py") == [str(tmp_path / "json/decoder.py")]
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / {"purelib": "json"}[name]))
    assert names("python-packages/*.py") == [str(tmp_path / "json/decoder.py")]


def test_the_standard_library_that_is_here():
    shards = resolve(DataConfig(files=["python-stdlib"])).shards
    assert len(shards) > 500
    assert f"{sysconfig.get_path('stdlib')}/json/decoder.py" in {shard.name for shard in shards}


def test_a_python_without_its_source_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "stdlib_root", lambda: tmp_path)
    with pytest.raises(DataError, match=r"no \.py files"):
        names("python-stdlib")
