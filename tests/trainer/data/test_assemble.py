"""A packed cache holds the same tokens and says how well they fit."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.trainer.data.corpora import prepared, write_corpus
from zerofleet.trainer.data.cache import DataCache
from zerofleet.trainer.data.packing import Rates


@pytest.fixture
def files(tmp_path) -> str:
    return write_corpus(tmp_path / "corpus")


def test_a_packed_cache_says_how_full_it_is_and_what_is_cut(files, tmp_path):
    said = []
    cache = prepared(files, tmp_path / "cache", progress=lambda *report: said.append(report), packing="best_fit")
    lengths = np.diff(cache.train.document_ends, prepend=0)
    fill = lengths.sum() / (cache.train.num_sequences * 32)
    assert cache.rates["train"] == Rates(fill, (lengths > 32).mean())
    index = json.loads((cache.path / "index.json").read_bytes())
    assert set(index["files"]) == {path.name for path in cache.path.glob("*.bin")}
    assert index["version"] == 2 and index["rates"]["train"]["fill"] == fill
    assert f"train {len(lengths)} documents" in said[-1][2]
    assert f"({fill:.2%} full, 100.0% of the documents cut)" in said[-1][2]
    assert DataCache.open(cache.path).train.num_sequences == cache.train.num_sequences


def test_packing_changes_no_token_and_no_split(files, tmp_path):
    plain = prepared(files, tmp_path / "cache")
    packed = prepared(files, tmp_path / "cache", packing="best_fit")
    for name in ("train.bin", "heldout.bin", "train.ends.bin", "heldout.ends.bin"):
        assert (packed.path / name).read_bytes() == (plain.path / name).read_bytes()
    assert packed.heldout.num_targets(np.arange(packed.heldout.num_sequences)).sum() == plain.heldout.num_tokens


def test_packed_with_nothing_held_out(files, tmp_path):
    cache = prepared(files, tmp_path / "cache", packing="best_fit", heldout_fraction=0)
    assert cache.heldout.num_sequences == 0 and cache.train.num_sequences > 0
    assert cache.rates["heldout"] == Rates(1.0, 0.0)
