"""Functions of the user's: which documents stay, what is taken out of them, and that a change of a function is another cache."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.trainer.data.corpora import document, prepared
from tests.trainer.data.test_prepare import documents_of
from zerofleet.trainer.config import DataConfig
from zerofleet.trainer.data.functions import Functions, UserFunction
from zerofleet.trainer.data.sources import resolve
from zerofleet.trainer.data.tokenizer import sample_documents
from zerofleet.trainer.errors import UserError

MODULE = """
LIMIT = 120

def short(text):
    return len(text) < LIMIT

def without_numbers(text):
    return "".join(c for c in text if not c.isdigit())

def same(text):
    return text

def fails(text):
    return text[10**9]

def nothing(text):
    return None

def half(text):
    return "\\ud800"

def blank(text):
    return " "

class Holder:
    @staticmethod
    def inside(text):
        return False

number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch) -> Path:
    """A module `own_functions` of the user's; imported anew in each test."""
    path = tmp_path / "modules/own_functions.py"
    path.parent.mkdir()
    path.write_text(MODULE)
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.delitem(sys.modules, "own_functions", raising=False)
    yield path
    sys.modules.pop("own_functions", None)


@pytest.fixture
def files(tmp_path) -> str:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02d}.txt").write_text(document(number, 10 if number % 3 else 60), "utf-8")
    return f"{folder}/*.txt"


def all_documents(cache) -> set[str]:
    return {*documents_of(cache.train, cache), *documents_of(cache.heldout, cache)}


def test_a_filter_says_what_stays_and_is_counted(files, module, tmp_path):
    said = []
    cache = prepared(
        files, tmp_path / "cache", filter="own_functions:short", progress=lambda *report: said.append(report)
    )
    texts = [document(number, 10 if number % 3 else 60) for number in range(30)]
    short = {text for text in texts if len(text) < 120}
    assert all_documents(cache) == short and 0 < len(short) < 30
    assert cache.left_out.num_filtered == 30 - len(short)
    assert f"{30 - len(short)} left out by data.filter" in said[-1][2]


def test_scrubbing_comes_after_the_filter_and_before_the_tokenizer_sees_anything(files, module, tmp_path):
    cache = prepared(files, tmp_path / "cache", filter="own_functions:short", scrub="own_functions:without_numbers")
    texts = [document(number, 10 if number % 3 else 60) for number in range(30)]
    kept = [text for text in texts if len(text) < 120]
    assert all_documents(cache) == {"".join(c for c in text if not c.isdigit()) for text in kept}
    assert cache.left_out.num_scrubbed == len(kept)
    functions = Functions.of("own_functions:short", "own_functions:without_numbers")
    sample = list(sample_documents(resolve(DataConfig(files=[files])), 10**6, functions=functions))
    assert set(sample) == all_documents(cache), "what is taken out must not come back as an entry of the tokenizer"


def test_a_document_that_is_scrubbed_away_is_left_out_like_a_blank_one(files, module, tmp_path):
    from zerofleet.trainer.errors import DataError

    with pytest.raises(DataError, match="corpus is empty.*30 altered by data.scrub"):
        prepared(files, tmp_path / "cache", scrub="own_functions:blank")


def test_another_source_is_another_cache_and_a_function_that_does_nothing_feeds_the_same(
    files, module, tmp_path, monkeypatch
):
    plain = prepared(files, tmp_path / "cache")
    first = prepared(files, tmp_path / "cache", scrub="own_functions:same")
    assert first.path != plain.path and first.fingerprint == plain.fingerprint
    assert prepared(files, tmp_path / "cache", scrub="own_functions:same").path == first.path
    sys.modules.pop("own_functions")
    module.write_text(MODULE.replace("LIMIT = 120", "LIMIT = 12000"))  # what a function uses beside itself counts too
    assert prepared(files, tmp_path / "cache", scrub="own_functions:same").path != first.path


def test_functions_inside_of_classes_and_what_cannot_be_used(files, module, tmp_path):
    from zerofleet.trainer.errors import DataError

    with pytest.raises(DataError, match="corpus is empty.*30 left out by data.filter"):
        prepared(files, tmp_path / "cache", filter="own_functions:Holder.inside")
    for name, says in (
        ("nonesuch_module:f", "cannot be imported .*ModuleNotFoundError.*PYTHONPATH"),
        ("own_functions:nonesuch", "cannot be imported .*AttributeError"),
        ("own_functions:number", "is a int, not a function"),
        ("builtins:bool", "has no Python source"),
        ("own_functions:nothing", r"returned NoneType for .*00\.txt, document 0: it has to return bool"),
        ("own_functions:fails", r"failed on .*00\.txt, document 0 \(IndexError"),
    ):
        with pytest.raises(UserError, match=says):
            prepared(files, tmp_path / "cache", filter=name)
    with pytest.raises(UserError, match="returned half of a surrogate pair"):
        prepared(files, tmp_path / "cache", scrub="own_functions:half")


@pytest.mark.parametrize("name", ["module", "module.function", "a:b:c", "../a:b", "a: b"])
def test_a_name_that_is_none(name, tmp_path):
    with pytest.raises(ValidationError):
        DataConfig(files=["x"], filter=name)


@pytest.mark.integration
def test_processes_find_the_users_module(files, module, tmp_path, monkeypatch):
    from tests.trainer.data.test_pool import in_processes

    reference = prepared(files, tmp_path / "one", filter="own_functions:short")
    started = in_processes(monkeypatch, 2)
    monkeypatch.setattr("zerofleet.trainer.data.parts._MIN_PART_BYTES", 500)
    assert prepared(files, tmp_path / "two", filter="own_functions:short").fingerprint == reference.fingerprint
    assert len(started) == 2


def test_a_function_is_named_by_the_setting_it_stands_in():
    with pytest.raises(UserError, match="data.scrub=x.y:z cannot be imported"):
        UserFunction("data.scrub", "x.y:z", str)("text", "a place")
