"""Tokenised parts of a corpus: the unit that a killed preparation keeps.

A part is the documents of data shards i to j: `parts/i-j.tokens` (ids, each document with EOS) and `parts/i-j.docs` (a record
per document), which is renamed into place last and so says that the part is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from zerofleet.trainer.data.local_files import writing
from zerofleet.trainer.data.sources import Corpus, Shard, is_blank
from zerofleet.trainer.data.tokenizer import Encoder

DOCUMENT = np.dtype([("num_tokens", "<i8"), ("hash", "<u8")])
"""`hash` is the xxh3-64 of the text under the run's seed: it decides the split."""
_MIN_PART_BYTES = 2 * 1024 * 1024
_MAX_PARTS = 1024
_BATCH_CHARS = 1024 * 1024
"""Characters given to the tokenizer at once: enough for all threads, little enough for memory (some 100 bytes per token)."""


@dataclass(frozen=True)
class Part:
    first: int
    """Index of the first shard in the corpus."""
    shards: Sequence[Shard]

    @property
    def num_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)

    def tokens_path(self, folder: Path) -> Path:
        return folder / f"{self._name}.tokens"

    def documents_path(self, folder: Path) -> Path:
        return folder / f"{self._name}.docs"

    @property
    def _name(self) -> str:
        """By range, so that parts of another grouping are never taken for this one."""
        return f"{self.first:08d}-{self.first + len(self.shards):08d}"

    def is_done(self, folder: Path) -> bool:
        return self.documents_path(folder).exists()

    def read_documents(self, folder: Path) -> NDArray[Any]:
        return np.fromfile(self.documents_path(folder), dtype=DOCUMENT)


def plan_parts(corpus: Corpus) -> list[Part]:
    """Consecutive shards, grouped until a part is worth its files. What comes out at the end does not depend on the grouping."""
    part_bytes = max(_MIN_PART_BYTES, corpus.num_bytes // _MAX_PARTS)
    ends = {*corpus.first_shards, len(corpus.shards)}  # a part is of one source
    parts: list[Part] = []
    first, size = 0, 0
    for index, shard in enumerate(corpus.shards, 1):
        size += shard.num_bytes
        if size >= part_bytes or index in ends:
            parts.append(Part(first, corpus.shards[first:index]))
            first, size = index, 0
    return parts


def tokenise_part(part: Part, encoder: Encoder, seed: int, folder: Path, advance: Callable[[int], None]) -> None:
    """Writes a part whole. `advance` is told the bytes of it read so far, after each batch."""
    records: list[tuple[int, int]] = []
    with writing(part.tokens_path(folder)) as file:
        for documents, bytes_read in _batches(part):
            for document, tokens in zip(documents, encoder.encode(documents), strict=True):
                file.write(tokens.data)
                records.append((len(tokens), xxhash.xxh3_64_intdigest(document.encode(), seed=seed)))
            advance(bytes_read)
    with writing(part.documents_path(folder)) as file:
        file.write(np.array(records, dtype=DOCUMENT).tobytes())


def _batches(part: Part) -> Iterator[tuple[list[str], int]]:
    """(documents, bytes of the part read so far): of each shard no more than its size, however well it was compressed."""
    before = 0
    batch: list[str] = []
    batch_chars = 0
    for shard in part.shards:
        shard_chars = 0
        for document in shard.documents():
            shard_chars += len(document)
            if is_blank(document):
                continue
            batch.append(document)
            batch_chars += len(document)
            if batch_chars >= _BATCH_CHARS:
                yield batch, before + min(shard_chars, shard.num_bytes)
                batch, batch_chars = [], 0
        before += shard.num_bytes
    if batch:
        yield batch, before
