"""A trained tokenizer is the same every time and loses nothing; a given one is used as it is, or refused with a reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.data.corpora import document, write_corpus
from zerofleet.trainer.config import DataConfig
from zerofleet.trainer.data import tokenizer
from zerofleet.trainer.data.sources import Corpus, resolve
from zerofleet.trainer.data.tokenizer import EOS, Encoder, sample_documents, save_given, save_trained
from zerofleet.trainer.errors import UserError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    return resolve(DataConfig(files=[write_corpus(tmp_path_factory.mktemp("corpus") / "files")]))


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "trained"
    save_trained(corpus, 300, folder)
    return folder


def test_trained_with_one_thread_or_many_it_is_the_same(trained, tmp_path):
    again = tmp_path / "again"
    code = (
        "import sys; from pathlib import Path; from zerofleet.trainer.config import DataConfig\n"
        "from zerofleet.trainer.data.sources import resolve; from zerofleet.trainer.data.tokenizer import save_trained\n"
        "save_trained(resolve(DataConfig(files=[sys.argv[1]])), 300, Path(sys.argv[2]))\n"
    )
    write_corpus(tmp_path / "files")
    subprocess.run(
        [sys.executable, "-c", code, f"{tmp_path}/files/*.txt", str(again)],
        check=True,
        env=os.environ | {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "7"},
    )
    assert (again / "tokenizer.json").read_bytes() == (trained / "tokenizer.json").read_bytes()
    assert Encoder(again).fingerprint == Encoder(trained).fingerprint


def test_transformers_loads_it_and_agrees(trained):
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(trained), Encoder(trained)
    assert theirs.eos_token == EOS and len(theirs) == ours.size == 300
    for text in (document(3), "tabs\tand  spaces\n\n\x00 日本 🎉"):
        ids = ours.encode([text])[0].tolist()
        assert ids == [*theirs(text)["input_ids"], theirs.eos_token_id]
        assert theirs.decode(ids[:-1]) == text


def test_text_that_spells_the_end_of_a_document_does_not_end_it(trained):
    encoder = Encoder(trained)
    ids = encoder.encode([f"a{EOS}b"])[0].tolist()
    assert ids.count(ids[-1]) == 1


def test_a_huge_document_is_cut_behind_line_ends_with_the_same_tokens(trained, monkeypatch):
    encoder = Encoder(trained)
    text = "\n".join(document(seed, 20) for seed in range(20))
    whole = encoder.encode([text, "x"])
    monkeypatch.setattr(tokenizer, "_MAX_PIECE_CHARS", 200)
    monkeypatch.setattr(tokenizer, "_GROUP_CHARS", 500)
    for first, second in zip(encoder.encode([text, "x"]), whole, strict=True):
        assert first.tolist() == second.tolist()
    no_lines = "x" * 1001
    pieces = list(tokenizer._pieces(no_lines))
    assert "".join(piece for piece, _ in pieces) == no_lines
    assert [is_last for _, is_last in pieces] == [False] * 5 + [True]


def test_the_sample_is_bounded_and_drawn_over_all_shards(corpus, monkeypatch):
    assert "".join(sample_documents(corpus, 10**9)) == "".join(
        text for shard in corpus.shards for text in shard.documents()
    )
    monkeypatch.setattr(tokenizer, "_MAX_PIECE_CHARS", 50)
    sample = list(sample_documents(corpus, 1000))
    assert sum(map(len, sample)) == 1000
    assert len(sample) == 20
    assert sample == list(sample_documents(corpus, 1000))


def given_tokenizer(trained, folder, **changes):
    """A copy of the trained tokenizer as another project would have saved it."""
    backend = json.loads((trained / "tokenizer.json").read_text())
    backend |= changes.pop("backend", {})
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS} | changes
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(backend))
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return str(folder)


def test_a_given_tokenizer_cuts_nothing_off(trained, tmp_path):
    truncation = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 4000},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": EOS,
    }
    name = given_tokenizer(trained, tmp_path / "given", backend={"truncation": truncation, "padding": padding})
    save_given(name, tmp_path / "saved")
    assert (
        Encoder(tmp_path / "saved").encode([document(1)])[0].tolist()
        == Encoder(trained).encode([document(1)])[0].tolist()
    )


def test_another_end_of_document_is_another_fingerprint(trained, tmp_path):
    same = Encoder(Path(given_tokenizer(trained, tmp_path / "same")))
    other = Encoder(Path(given_tokenizer(trained, tmp_path / "other", eos_token={"content": "!"})))
    assert same.fingerprint != other.fingerprint
    assert other.encode(["x"])[0][-1] != same.encode(["x"])[0][-1]


def test_a_tokenizer_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in (str(tmp_path / "nowhere"), str(tmp_path)):
        with pytest.raises(
            UserError, match=rf"data\.tokenizer='{name}' cannot be loaded .*leave it out and one is trained"
        ):
            save_given(name, tmp_path / "saved")


def test_a_tokenizer_without_eos_says_what_to_do(trained, tmp_path):
    name = given_tokenizer(trained, tmp_path / "given", eos_token=None)
    with pytest.raises(UserError, match=r"has no eos token.*tokenizer\.eos_token = "):
        save_given(name, tmp_path / "saved")
