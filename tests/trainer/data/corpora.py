"""Small corpora for the tests of data."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from zerofleet.trainer.config import DataConfig
from zerofleet.trainer.data.cache import DataCache
from zerofleet.trainer.data.prepare import Progress, prepare

WORDS = [
    "def",
    "return",
    "self",
    "value",
    "naïve",
    "for",
    "in",
    "range",
    "tree",
    "ledger",
    "über",
    "x",
    "=",
    "(",
    ")",
    "日本",
]


def document(seed: int, num_words: int = 120) -> str:
    """Some text that differs for every seed."""
    draw = random.Random(seed)
    return f"document {seed}\n" + " ".join(draw.choices(WORDS, k=num_words))


def write_corpus(folder: Path, num_files: int = 40, num_words: int = 120) -> str:
    """Writes text files and returns the glob that names them."""
    folder.mkdir(parents=True)
    for index in range(num_files):
        (folder / f"{index:03d}.txt").write_text(document(index, num_words), "utf-8")
    return f"{folder}/*.txt"


def quiet(stage: str, fraction: float, detail: str) -> None:
    """A progress that nobody watches."""


def config(files: str | list[str], cache: Path, **changes: Any) -> DataConfig:
    """A small tokenizer and short sequences."""
    fields = {"tokenizer_vocab_size": 300, "sequence_length": 32, "heldout_fraction": 0.1} | changes
    return DataConfig(files=[files] if isinstance(files, str) else files, cache=str(cache), **fields)


def prepared(
    files: str | list[str], cache: Path, seed: int = 0, progress: Progress = quiet, **changes: Any
) -> DataCache:
    return prepare(config(files, cache, **changes), seed, progress)


def content(cache: DataCache) -> dict[str, bytes]:
    """Every file of a cache by its relative path; the empty lock file is no content."""
    files = [path for path in cache.path.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(cache.path)): path.read_bytes() for path in files}
