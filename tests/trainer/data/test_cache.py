"""Sequences are what the documents say, every token is a target once, and a damaged cache is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from tests.trainer.data.corpora import prepared, write_corpus
from zerofleet.trainer.data.cache import DataCache, prepared_in
from zerofleet.trainer.errors import DataError


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return prepared(write_corpus(folder / "corpus"), folder / "cache")


def test_opened_again_it_is_the_same(cache):
    again = DataCache.open(cache.path)
    assert (again.fingerprint, again.tokenizer_fingerprint, again.tokenizer_size) == (
        cache.fingerprint,
        cache.tokenizer_fingerprint,
        cache.tokenizer_size,
    )
    indices = np.arange(cache.train.num_sequences)
    assert np.array_equal(again.train.read(indices)[0], cache.train.read(indices)[0])
    assert again.train.document_ends[-1] == again.train.num_tokens


def test_one_flipped_bit_is_found_when_it_is_verified(cache, tmp_path):
    cache.verify()
    path = tmp_path / "copy"
    shutil.copytree(cache.path, path)
    data = bytearray((path / "train.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "train.bin").write_bytes(data)
    with pytest.raises(DataError, match="train.bin does not match its hash.*it is prepared again"):
        DataCache.open(path).verify()


def test_prepared_data_is_found_by_its_fingerprint(cache, tmp_path):
    assert prepared_in(cache.path) == prepared_in(cache.path.parent) == {cache.fingerprint: cache.path}
    assert prepared_in(tmp_path) == prepared_in(tmp_path / "nowhere") == {}
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "index.json").write_text("{")
    shutil.copytree(cache.path, tmp_path / "whole")
    assert prepared_in(tmp_path) == {cache.fingerprint: tmp_path / "whole"}


@pytest.mark.parametrize("damage", ["truncated", "missing", "index", "not json", "version"])
def test_a_damaged_cache_is_refused(cache, tmp_path, damage):
    path = tmp_path / "copy"
    shutil.copytree(cache.path, path)
    index = path / "index.json"
    if damage == "truncated":
        (path / "train.bin").write_bytes((path / "train.bin").read_bytes()[:-2])
    elif damage == "missing":
        (path / "heldout.ends.bin").unlink()
    elif damage == "index":
        index.write_text(index.read_text().replace('"sequence_length": 32', '"sequence_length": 64'))
    elif damage == "not json":
        index.write_text("{")
    else:
        index.write_text(json.dumps(json.loads(index.read_text()) | {"version": 99}))
    with pytest.raises(DataError, match="remove that folder"):
        DataCache.open(path)


def test_what_was_never_prepared_says_so(tmp_path):
    with pytest.raises(DataError, match="holds no prepared data"):
        DataCache.open(tmp_path)
