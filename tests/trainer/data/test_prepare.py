"""What a prepared cache holds, when it is made again, and how a corpus that cannot be used is refused."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import xxhash

from tests.trainer.data.corpora import config, content, document, prepared, quiet, write_corpus
from zerofleet.trainer.config import DataConfig
from zerofleet.trainer.data import parts as parts_module
from zerofleet.trainer.data import prepare as prepare_module
from zerofleet.trainer.data.cache import content_fingerprint
from zerofleet.trainer.data.prepare import cache_root, train_tokenizer
from zerofleet.trainer.data.sources import Corpus
from zerofleet.trainer.data.tokenizer import Encoder
from zerofleet.trainer.errors import DataError


@pytest.fixture
def files(tmp_path) -> str:
    return write_corpus(tmp_path / "corpus")


def documents_of(store, cache) -> list[str]:
    """Decodes a split again, document by document."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(cache.tokenizer_path / "tokenizer.json"))
    input_ids, labels = store.read(np.arange(store.num_sequences))
    tokens = np.concatenate([input_ids[0, :1], labels[labels >= 0]])
    bounds = [0, *store.document_ends]
    assert all(tokens[end - 1] == 0 for end in bounds[1:])
    return [backend.decode(tokens[a : b - 1].tolist()) for a, b in itertools.pairwise(bounds)]


def test_every_document_is_in_one_split_whole_and_in_order(files, tmp_path):
    cache = prepared(files, tmp_path / "cache", seed=5)
    texts = [document(index) for index in range(40)]
    limit = int(0.1 * 2**64)
    heldout = [text for text in texts if xxhash.xxh3_64_intdigest(text.encode(), seed=5) < limit]
    assert 0 < len(heldout) < 20
    assert documents_of(cache.heldout, cache) == heldout
    assert documents_of(cache.train, cache) == [text for text in texts if text not in heldout]


def test_the_split_follows_the_content_and_the_seed(tmp_path):
    first = prepared(write_corpus(tmp_path / "a"), tmp_path / "cache")
    (tmp_path / "b").mkdir()
    for index in range(40):  # other names and another order
        shutil.copy(tmp_path / f"a/{index:03d}.txt", tmp_path / f"b/{999 - index}.md")
    second = prepared(f"{tmp_path}/b/*", tmp_path / "cache")
    third = prepared(f"{tmp_path}/b/*", tmp_path / "cache", seed=1)
    held = [sorted(documents_of(cache.heldout, cache)) for cache in (first, second, third)]
    assert held[0] == held[1] != held[2]


def test_at_least_one_document_is_held_out_and_copies_go_together(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for index in range(9):
        (folder / f"{index}.txt").write_text(document(index % 3))
    cache = prepared(f"{folder}/*", tmp_path / "cache", heldout_fraction=1e-9)
    assert len(cache.heldout.document_ends) == 3 and len(set(documents_of(cache.heldout, cache))) == 1
    none = prepared(f"{folder}/*", tmp_path / "cache", heldout_fraction=0)
    assert none.heldout.num_sequences == 0 and len(none.train.document_ends) == 9


def test_blank_documents_are_left_out(files, tmp_path):
    reference = prepared(files, tmp_path / "cache")
    (tmp_path / "corpus/000a.txt").write_text("")
    (tmp_path / "corpus/000b.txt").write_text(" \n\t\n")
    assert prepared(files, tmp_path / "cache").fingerprint == reference.fingerprint


def test_a_second_call_reads_nothing(files, tmp_path, monkeypatch):
    first = prepared(files, tmp_path / "cache")
    monkeypatch.setattr(prepare_module, "_build", None)
    stages = []
    second = prepared(files, tmp_path / "cache", progress=lambda *report: stages.append(report[:2]))
    assert second.path == first.path
    assert stages == [("list", 0.0), ("list", 1.0), ("ready", 1.0)]


@pytest.mark.parametrize(
    "changes",
    [
        {"sequence_length": 64},
        {"tokenizer_vocab_size": 280},
        {"heldout_fraction": 0.3},
        {"seed": 1},
        {"packing": "best_fit"},
    ],
)
def test_another_config_is_another_cache(files, tmp_path, changes):
    first = prepared(files, tmp_path / "cache")
    second = prepared(files, tmp_path / "cache", **changes)
    assert first.path != second.path and first.fingerprint != second.fingerprint


def test_how_sequences_are_fed_is_no_part_of_the_cache(files, tmp_path):
    first = prepared(files, tmp_path / "cache")
    assert prepared(files, tmp_path / "cache", document_mask=True).path == first.path


def test_caches_of_zerofleet_0_3_are_found_and_are_the_same(files, tmp_path):
    """Runs compare the fingerprint with their checkpoints': when this fails, the change breaks every run that exists."""
    key = prepare_module._key(DataConfig(files=["x"]), 7, Corpus([], [["x", 1, "2"]]), None)
    assert key == "6c92a358fc29a3cf11e063784cdf060c"
    cache = prepared(files, tmp_path / "cache")
    index = json.loads((cache.path / "index.json").read_bytes())
    assert index["version"] == 1 and set(index["rates"]) == {"train", "heldout"}
    del index["rates"]  # 0.3 wrote none
    assert content_fingerprint(index) == cache.fingerprint
    (cache.path / "index.json").write_text(json.dumps(index))
    said = []
    again = prepared(files, tmp_path / "cache", progress=lambda *report: said.append(report))
    assert again.fingerprint == cache.fingerprint and "cut" not in said[-1][2]


@pytest.mark.parametrize(
    ("packing", "fingerprint", "all_bytes"),
    [
        ("concatenate", "fddf2cd262c8829fabacca501d9185e1", "a6d0a1426aca9ccb1a3280670b65d5b9"),
        ("best_fit", "980de7b853085e6785f1d0038a98314b", "a65ec0956e9329a221f50184eeb41fe6"),
    ],
)
def test_a_recipe_without_the_newer_settings_gives_the_bytes_that_it_always_gave(
    files, tmp_path, packing, fingerprint, all_bytes
):
    """As of commit 173da95. Runs that exist resume with data that is prepared again; see the test above."""
    cache = prepared(files, tmp_path / "cache", packing=packing)
    assert cache.fingerprint == fingerprint
    assert xxhash.xxh3_128_hexdigest(repr(sorted(content(cache).items())).encode()) == all_bytes


def test_the_fingerprint_follows_content_not_place_or_time(tmp_path):
    first = prepared(write_corpus(tmp_path / "a"), tmp_path / "cache")
    second = prepared(write_corpus(tmp_path / "b"), tmp_path / "elsewhere")
    assert first.path.name != second.path.name
    assert first.fingerprint == second.fingerprint
    assert content(first) == content(second)
    (tmp_path / "b/007.txt").write_text("changed")
    assert prepared(f"{tmp_path}/b/*.txt", tmp_path / "elsewhere").fingerprint != first.fingerprint


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_parts_leave_no_trace(files, tmp_path, monkeypatch, packing):
    whole = prepared(files, tmp_path / "whole", packing=packing)
    monkeypatch.setattr(parts_module, "_MIN_PART_BYTES", 1000)
    monkeypatch.setattr(parts_module, "_BATCH_CHARS", 300)
    assert content(prepared(files, tmp_path / "parts", packing=packing)) == content(whole)
    assert "parts" not in [path.name for path in whole.path.iterdir()]


def test_a_large_vocabulary_needs_four_bytes(files, tmp_path, monkeypatch):
    small = prepared(files, tmp_path / "small")
    monkeypatch.setattr(
        Encoder, "dtype", property(lambda self: np.dtype("<u4"), lambda self, value: None), raising=False
    )
    large = prepared(files, tmp_path / "large")
    for store, wide in ((small.train, large.train), (small.heldout, large.heldout)):
        assert np.array_equal(store.read(np.arange(3))[1], wide.read(np.arange(3))[1])
    assert (large.path / "train.bin").stat().st_size == 2 * (small.path / "train.bin").stat().st_size


def test_a_given_tokenizer(files, tmp_path):
    trained = prepared(files, tmp_path / "cache")
    given = prepared(files, tmp_path / "other", tokenizer=str(trained.tokenizer_path))
    indices = np.arange(given.train.num_sequences)
    assert np.array_equal(given.train.read(indices)[0], trained.train.read(indices)[0])
    assert given.tokenizer_size == trained.tokenizer_size
    assert Encoder(given.tokenizer_path).fingerprint == given.tokenizer_fingerprint
    smaller = prepared(files, tmp_path / "cache", tokenizer_vocab_size=280)
    assert prepared(files, tmp_path / "other", tokenizer=str(smaller.tokenizer_path)).path != given.path


def test_a_damaged_cache_is_prepared_again(files, tmp_path):
    first = prepared(files, tmp_path / "cache")
    expected = content(first)
    (first.path / "train.bin").write_bytes(b"short")
    assert content(prepared(files, tmp_path / "cache")) == expected


def test_one_prepares_and_the_other_waits_and_says_so(files, tmp_path):
    reference = prepared(files, tmp_path / "reference")
    folder = tmp_path / "cache" / reference.path.name
    folder.mkdir(parents=True)
    waits, caches = threading.Event(), []

    def progress(stage: str, fraction: float, detail: str) -> None:
        if stage == "wait":
            waits.set()

    with (folder / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        other = threading.Thread(
            target=lambda: caches.append(prepared(files, tmp_path / "cache", progress=progress)), daemon=True
        )
        other.start()
        assert waits.wait(20)
        assert not caches
    other.join(20)
    assert content(caches[0]) == content(reference)


def test_progress_rises_to_one_in_every_stage(files, tmp_path, monkeypatch):
    monkeypatch.setattr(parts_module, "_BATCH_CHARS", 1000)
    seen: dict[str, list[float]] = {}
    prepared(files, tmp_path / "cache", progress=lambda stage, at, detail: seen.setdefault(stage, []).append(at))
    assert list(seen) == ["list", "tokenizer", "tokenise", "write", "ready"]
    assert all(fractions == sorted(fractions) and fractions[-1] == 1.0 for fractions in seen.values())
    assert len(seen["tokenise"]) > 5


def test_rate_and_remaining_time_once_they_mean_something():
    assert prepare_module._remaining(100_000_000, 25_000_000, 10.0) == ", 2.5 MB/s, ETA 0:00:30"
    assert prepare_module._remaining(100_000_000, 25_000_000, 1.0) == ""
    assert prepare_module._remaining(100_000_000, 0, 10.0) == ""


def test_an_empty_corpus_is_refused(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, text in [("a.txt", ""), ("b.txt", "  \n"), ("c.jsonl", '{"text": ""}\n')]:
        (folder / name).write_text(text)
        with pytest.raises(DataError, match=r"corpus is empty: \d files .* \d+ bytes hold no document with text"):
            prepared(f"{folder}/*", tmp_path / "cache")
    trained = prepared(write_corpus(tmp_path / "full"), tmp_path / "cache")
    with pytest.raises(DataError, match="corpus is empty: 3 files"):
        prepared(f"{folder}/*", tmp_path / "cache", tokenizer=str(trained.tokenizer_path))


def test_a_corpus_that_is_held_out_whole_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("the only document")
    with pytest.raises(DataError, match=r"nothing is left to train on: all 1 documents .*set data\.heldout_fraction=0"):
        prepared(f"{tmp_path}/a.txt", tmp_path / "cache")
    assert prepared(f"{tmp_path}/a.txt", tmp_path / "cache", heldout_fraction=0).train.num_sequences == 1


def test_bad_bytes_stop_it_and_a_corrected_file_goes_on(files, tmp_path):
    expected = content(prepared(files, tmp_path / "expected"))
    bad = tmp_path / "corpus/020.txt"
    text = bad.read_bytes()
    bad.write_bytes(text[:10] + b"\xff" + text[10:])
    with pytest.raises(DataError, match=r"020\.txt: byte 10 \(0xff\)"):
        prepared(files, tmp_path / "cache")
    bad.write_bytes(text)
    assert content(prepared(files, tmp_path / "cache")) == expected


def test_the_place_of_the_cache(monkeypatch, tmp_path):
    data = DataConfig(files=["python-stdlib"])
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ZEROFLEET_CACHE", raising=False)
    assert cache_root(data) == tmp_path / ".cache/zerofleet"
    monkeypatch.setenv("ZEROFLEET_CACHE", str(tmp_path / "env"))
    assert cache_root(data) == tmp_path / "env"
    assert cache_root(DataConfig(files=["python-stdlib"], cache="~/own")) == tmp_path / "own"


def test_importing_it_is_light():
    code = (
        "import sys, zerofleet.trainer.data.prepare, zerofleet.trainer.data.order, zerofleet.trainer.data.ledger\n"
        "heavy = {'torch', 'ray', 'transformers', 'datasets', 'tokenizers', 'pyarrow', 'pandas'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(os.sep))


def test_the_default_corpus_on_a_few_files(tmp_path, monkeypatch):
    from zerofleet.trainer.data import sources

    for name in ("json", "logging"):
        shutil.copytree(sources.stdlib_root() / name, tmp_path / "lib" / name)
    monkeypatch.setattr(sources, "stdlib_root", lambda: tmp_path / "lib")
    cache = prepared("python-stdlib", tmp_path / "cache", tokenizer_vocab_size=512)
    assert cache.tokenizer_size == 512
    assert cache.train.num_tokens > 10_000 and cache.heldout.num_sequences >= 1


# -- a tokenizer by itself ---------------------------------------------------------------------------------------------
def test_a_tokenizer_by_itself_is_that_of_the_preparation(files, tmp_path):
    folder = train_tokenizer(config(files, tmp_path / "cache"), quiet)
    assert Encoder(folder).fingerprint == prepared(files, tmp_path / "cache").tokenizer_fingerprint
    stages = []
    assert train_tokenizer(config(files, tmp_path / "cache"), lambda *report: stages.append(report)) == folder
    assert stages == [], "it is there"


def test_a_tokenizer_by_itself_is_trained_on_what_is_left_of_the_corpus(files, tmp_path, monkeypatch):
    (tmp_path / "zf_scrubbing.py").write_text("def without_trees(text):\n    return text.replace('tree', '')\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "corpus/bad.txt").write_bytes(b"abc\xff")
    scrub = {"scrub": "zf_scrubbing:without_trees"}
    with pytest.raises(DataError, match=r"bad.txt: byte 3"):
        train_tokenizer(config(files, tmp_path / "cache"), quiet)
    options = [{"on_bad": "quarantine"}, {"on_bad": "quarantine", **scrub}]
    folders = [train_tokenizer(config(files, tmp_path / "cache", **changes), quiet) for changes in options]
    learned = [(folder / "tokenizer.json").read_text() for folder in folders]
    assert ["tree" in text for text in learned] == [True, False]
    assert Encoder(folders[1]).fingerprint == prepared(files, tmp_path / "cache", **options[1]).tokenizer_fingerprint


def test_two_that_want_the_same_tokenizer_at_once_train_it_once(files, tmp_path, monkeypatch):
    """The second waits for the first, which goes on when the second is there."""
    trained, is_training, is_waiting = [], threading.Event(), threading.Event()
    save_trained, found = prepare_module.save_trained, []

    def slowly(*arguments):
        trained.append(arguments)
        is_training.set()
        assert is_waiting.wait(30)
        save_trained(*arguments)

    def hear(stage: str, fraction: float, detail: str) -> None:
        if stage == "wait":
            is_waiting.set()

    monkeypatch.setattr(prepare_module, "save_trained", slowly)
    threads = [
        threading.Thread(target=lambda: found.append(train_tokenizer(config(files, tmp_path / "cache"), hear)))
        for _ in range(2)
    ]
    threads[0].start()
    assert is_training.wait(30)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert len(trained) == 1 and found[0] == found[1] and (found[0] / "tokenizer.json").exists()


def test_a_tokenizer_whose_training_was_killed_is_trained_again(files, tmp_path, monkeypatch):
    def killed(draft: Path, folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            train_tokenizer(config(files, tmp_path / "cache"), quiet)
    folder = train_tokenizer(config(files, tmp_path / "cache"), quiet)
    assert sorted(path.name for path in folder.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
