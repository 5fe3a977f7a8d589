"""A packed cache holds the same tokens and says how well they fit; a mixture's sources lie one after the other."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.trainer.data.corpora import content, prepared, quiet, write_corpus
from zerofleet.trainer.batch import BatchPlan
from zerofleet.trainer.config import DataConfig
from zerofleet.trainer.data import parts, sources
from zerofleet.trainer.data.cache import DataCache
from zerofleet.trainer.data.feed import Feed
from zerofleet.trainer.data.mixture import Schedule
from zerofleet.trainer.data.packing import Rates
from zerofleet.trainer.data.prepare import prepare
from zerofleet.trainer.data.sources import Corpus
from zerofleet.trainer.errors import DataError


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


@pytest.fixture
def mixture(tmp_path) -> dict[str, dict[str, object]]:
    """Two sources of different words, so that a sequence shows whose it is; `b` first, for names and not places decide the order."""
    sources = {}
    for name, word in (("b", "beech"), ("a", "ash")):
        folder = tmp_path / name
        folder.mkdir()
        for number in range(60):
            (folder / f"{number:02d}.txt").write_text(f"{word} " * (20 + number))
        sources[name] = {"files": [f"{folder}/*.txt"], "weight": 3 if name == "a" else 1}
    return sources


def mixed(sources, cache, progress=quiet, **changes):
    fields = {"tokenizer_vocab_size": 300, "sequence_length": 32, "heldout_fraction": 0.2, "packing": "best_fit"}
    return prepare(DataConfig(sources=sources, cache=str(cache), **(fields | changes)), 0, progress)


def words_in(cache, labels) -> list[set[str]]:
    """Of each sequence."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(cache.tokenizer_path / "tokenizer.json"))
    return [set(backend.decode(row[row >= 0].tolist()).split()) for row in labels]


def test_a_sequence_of_a_mixture_is_of_one_source(mixture, tmp_path):
    cache = mixed(mixture, tmp_path / "cache")
    for store in (cache.train, cache.heldout):
        first, second = store.source_sizes
        assert first + second == store.num_sequences and min(first, second) > 1
        words = words_in(cache, store.read(np.arange(store.num_sequences))[1])
        assert words == [{"ash"}] * first + [{"beech"}] * second
    assert DataCache.open(cache.path).train.source_sizes == cache.train.source_sizes


def test_weights_are_no_part_of_the_cache_and_names_are(mixture, tmp_path):
    cache = mixed(mixture, tmp_path / "cache")
    mixture["a"]["weight"] = 0.5
    said = []
    assert mixed(mixture, tmp_path / "cache", lambda *report: said.append(report)).path == cache.path
    first, second = cache.train.source_sizes
    assert f"; sources a {first} sequences, 33.33% of the samples, b {second} sequences, 66.67%" in said[-1][2]
    renamed = {"c": mixture["b"], "a": mixture["a"]}
    assert mixed(renamed, tmp_path / "cache").fingerprint != cache.fingerprint


def test_parts_of_a_mixture_leave_no_trace(mixture, tmp_path, monkeypatch):
    whole = mixed(mixture, tmp_path / "whole")
    monkeypatch.setattr(parts, "_MIN_PART_BYTES", 300)
    assert content(mixed(mixture, tmp_path / "parts")) == content(whole)


def test_a_source_with_nothing_to_train_on_is_refused(mixture, tmp_path):
    (tmp_path / "empty.txt").write_text(" ")
    mixture["b"]["files"] = [str(tmp_path / "empty.txt")]
    with pytest.raises(DataError, match=r"data\.sources\.b has nothing to train on.*heldout_fraction=0\.2"):
        mixed(mixture, tmp_path / "cache")
    mixture["a"]["files"], mixture["b"]["files"] = mixture["b"]["files"], mixture["a"]["files"]
    with pytest.raises(DataError, match=r"data\.sources\.a has nothing to train on"):
        mixed(mixture, tmp_path / "cache")


def test_a_source_that_names_nothing_is_refused_before_anything_is_made(mixture, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_hub_corpus", lambda hub, *settings: Corpus([], []))
    for name in ("a", "b"):
        changed = {**mixture, name: {"hub": {"id": "empty"}, "weight": 1}}
        with pytest.raises(DataError, match=rf"data\.sources\.{name} holds no documents"):
            mixed(changed, tmp_path / "cache")
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").glob("*/index.json"))


def test_what_a_mixture_feeds_is_what_its_weights_say(mixture, tmp_path):
    cache = mixed(mixture, tmp_path / "cache")
    weights = {name: source["weight"] for name, source in mixture.items()}
    feed = Feed(cache.train, BatchPlan.of(8, 2, 1), 3, "main", [], schedule=Schedule.of(weights))
    for index in range(20):
        words = words_in(cache, cache.train.read(feed.step_plan(index).samples)[1])
        assert words.count({"ash"}) == 6 and words.count({"beech"}) == 2
    blocks = list(feed.heldout_blocks(cache.heldout, 8, 0))
    words = words_in(cache, np.concatenate([block.labels for block in blocks]))
    assert words.count({"ash"}) == 6 and words.count({"beech"}) == 2, (
        "an evaluation of some takes them in the same proportion"
    )
