"""Of equal documents one stays, of nearly equal ones too; which, depends on the documents and not on their order."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.data.corpora import content, document, prepared
from tests.trainer.data.test_prepare import documents_of
from zerofleet.trainer.data import duplicates, parts
from zerofleet.trainer.data.duplicates import CONTENT, NUM_HASHES, content_of, first_copies, signature, unlike
from zerofleet.trainer.errors import UserError


def contents(texts: list[str]) -> np.ndarray:
    return np.frombuffer(b"".join(content_of(text.encode()) for text in texts), CONTENT)


def write(folder, texts: list[str]) -> str:
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number:03d}.txt").write_text(text, "utf-8")
    return f"{folder}/*.txt"


def all_documents(cache) -> list[str]:
    return sorted([*documents_of(cache.train, cache), *documents_of(cache.heldout, cache)])


@given(st.lists(st.sampled_from("abcdefgh"), max_size=30))
def test_of_equal_documents_the_first_stays(texts):
    kept = first_copies(contents(texts))
    assert [text for text, keep in zip(texts, kept, strict=True) if keep] == list(dict.fromkeys(texts))


def test_exact_keeps_one_of_each_and_counts(tmp_path, monkeypatch):
    texts = [document(number % 12, 40) for number in range(30)]
    files = write(tmp_path / "corpus", texts)
    said = []
    cache = prepared(files, tmp_path / "cache", deduplicate="exact", progress=lambda *report: said.append(report))
    assert all_documents(cache) == sorted(set(texts)) and cache.left_out.num_equal == 18
    assert "18 equal copies left out" in said[-1][2]
    once = prepared(write(tmp_path / "once", texts[:12]), tmp_path / "cache", tokenizer=str(cache.tokenizer_path))
    again = prepared(files, tmp_path / "cache", deduplicate="exact", tokenizer=str(cache.tokenizer_path))
    assert again.fingerprint == once.fingerprint, "as if the copies had never been there"
    monkeypatch.setattr(parts, "_MIN_PART_BYTES", 500)
    assert content(prepared(files, tmp_path / "parts", deduplicate="exact")) == content(cache)


def test_a_corpus_without_copies_is_fed_the_same(tmp_path):
    files = write(tmp_path / "corpus", [document(number) for number in range(20)])
    plain, exact = prepared(files, tmp_path / "cache"), prepared(files, tmp_path / "cache", deduplicate="exact")
    assert exact.path != plain.path and exact.fingerprint == plain.fingerprint and not exact.left_out


def test_copies_of_what_is_scrubbed_are_copies(tmp_path, monkeypatch):
    (tmp_path / "scrubbing.py").write_text(
        "def names(text):\n    return text.replace('Ann', 'X').replace('Bob', 'X')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    files = write(tmp_path / "corpus", [f"{name} wrote {number}" for name in ("Ann", "Bob") for number in range(9)])
    cache = prepared(files, tmp_path / "cache", deduplicate="exact", scrub="scrubbing:names")
    assert cache.left_out.num_equal == 9 and all_documents(cache) == [f"X wrote {number}" for number in range(9)]


def test_near_needs_its_library(tmp_path, monkeypatch):
    files = write(tmp_path / "corpus", ["one", "two"])
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(UserError, match=r"data\.deduplicate=near needs datasketch: pip install 'zerofleet\[dedup\]'"):
        prepared(files, tmp_path / "cache", deduplicate="near")
    assert not (tmp_path / "cache").exists()


# -- near -------------------------------------------------------------------------------------------------------------
@pytest.fixture
def near():
    pytest.importorskip("datasketch", reason="pip install 'zerofleet[dedup]'")


def changed(text: str, seed: int, num_words: int) -> str:
    draw, words = random.Random(seed), text.split(" ")
    for index in draw.sample(range(len(words)), num_words):
        words[index] = "changed"
    return " ".join(words)


def test_near_keeps_the_longest_of_each_group_whatever_the_order(near, tmp_path):
    originals = [document(number, 400) for number in range(10)]
    copies = [changed(text, seed, 3) for seed, text in enumerate(originals[:5])]
    longest = [text + " and a few words more" for text in originals[:3]]
    others = [changed(text, seed, 200) for seed, text in enumerate(originals[8:])]
    texts = [*originals, *copies, *longest, *others]
    tokenizer = str(prepared(write(tmp_path / "first", texts), tmp_path / "cache").tokenizer_path)
    expected = None
    for seed in range(3):
        random.Random(seed).shuffle(texts)
        cache = prepared(
            write(tmp_path / f"{seed}", texts), tmp_path / "cache", deduplicate="near", tokenizer=tokenizer
        )
        kept = all_documents(cache)
        assert cache.left_out.num_near == 8 and len(kept) == 12
        assert {*longest, *originals[5:], *others} < set(kept)
        expected = expected or kept
        assert kept == expected


def test_near_leaves_out_equal_copies_as_exact_does(near, tmp_path):
    texts = [document(number % 12, 200) for number in range(30)]
    cache = prepared(write(tmp_path / "corpus", texts), tmp_path / "cache", deduplicate="near")
    assert (
        cache.left_out.num_equal == 18 and cache.left_out.num_near == 0 and all_documents(cache) == sorted(set(texts))
    )


def test_signatures_estimate_similarity(near):
    draw = np.random.default_rng(3)
    for share in (0.02, 0.1, 0.3):
        one = draw.integers(0, 5000, 4000)
        other = np.where(draw.random(4000) < share / 5, 9999, one)
        exact = shingles(one) & shingles(other)
        similarity = len(exact) / len(shingles(one) | shingles(other))
        estimate = (signature(one) == signature(other)).mean()
        assert abs(estimate - similarity) < 4 * (similarity * (1 - similarity) / NUM_HASHES) ** 0.5 + 0.01


def shingles(tokens) -> set[tuple[int, ...]]:
    return {tuple(tokens[start : start + 5]) for start in range(len(tokens) - 4)}


def test_documents_shorter_than_a_shingle(near):
    few = [np.array(tokens, "<u2") for tokens in ([], [1], [1, 2], [1, 2, 3, 4], [1, 2, 3, 4, 5])]
    assert len({signature(tokens).tobytes() for tokens in few}) == len(few)


def test_a_huge_document_is_taken_in_batches(near, monkeypatch):
    tokens = np.random.default_rng(0).integers(0, 60000, 5000).astype("<u2")
    whole = signature(tokens)
    monkeypatch.setattr(duplicates, "_BATCH_SHINGLES", 100)
    assert np.array_equal(signature(tokens), whole)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_choice_does_not_depend_on_the_order(seed):
    """Signatures are made up here: groups of documents that differ in some of the hashes."""
    pytest.importorskip("scipy")
    draw = np.random.default_rng(seed)
    bases = draw.integers(0, 2**32, (6, NUM_HASHES), dtype=np.uint32)
    signatures = bases[draw.integers(0, 6, 25)].copy()
    others = draw.integers(0, 2**32, signatures.shape, dtype=np.uint32)
    is_other = draw.random(signatures.shape) < 0.12  # so that two of a group are sometimes alike and sometimes not
    is_other[:, : duplicates.ROWS] = False  # and are always compared
    signatures[is_other] = others[is_other]
    texts = contents([f"{number}" for number in range(25)])
    lengths = draw.integers(1, 4, 25)
    kept = unlike(texts, lengths, signatures)
    assert kept.any()  # rarely no two of them are alike enough, and all are kept
    order = draw.permutation(25)
    assert np.array_equal(unlike(texts[order], lengths[order], signatures[order]), kept[order])


def test_the_bands_are_those_of_the_library(near):
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=duplicates.SIMILARITY, num_perm=NUM_HASHES)
    assert (index.b, index.r) == (duplicates.BANDS, duplicates.ROWS)
