"""Tokenised parts of a corpus: the unit that a killed preparation keeps, and that processes share the work by.

A part is the documents of data shards i to j: `parts/i-j.tokens` (ids, each document with EOS), `parts/i-j.notes` (what was left out),
with deduplication `parts/i-j.contents` and `parts/i-j.signatures` (`duplicates.py`),
and `parts/i-j.docs` (a record per document), which is renamed into place last and so says that the part is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from zerofleet.trainer.data.bad_data import BadData, stop
from zerofleet.trainer.data.duplicates import CONTENT, NUM_HASHES, content_of, signature
from zerofleet.trainer.data.functions import Functions
from zerofleet.trainer.data.left_out import Notes
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

    def notes_path(self, folder: Path) -> Path:
        return folder / f"{self._name}.notes"

    @property
    def _name(self) -> str:
        """By range, so that parts of another grouping are never taken for this one."""
        return f"{self.first:08d}-{self.first + len(self.shards):08d}"

    def is_done(self, folder: Path) -> bool:
        return self.documents_path(folder).exists() and self.notes_path(folder).exists()

    def read_documents(self, folder: Path) -> NDArray[Any]:
        return np.fromfile(self.documents_path(folder), dtype=DOCUMENT)

    def contents_path(self, folder: Path) -> Path:
        return folder / f"{self._name}.contents"

    def signatures_path(self, folder: Path) -> Path:
        return folder / f"{self._name}.signatures"

    def read_contents(self, folder: Path) -> NDArray[Any]:
        return np.fromfile(self.contents_path(folder), dtype=CONTENT)

    def read_signatures(self, folder: Path) -> NDArray[np.uint32]:
        """[documents, NUM_HASHES]"""
        return np.fromfile(self.signatures_path(folder), dtype="<u4").reshape(-1, NUM_HASHES)

    def read_notes(self, folder: Path) -> Notes:
        return Notes.from_bytes(self.notes_path(folder).read_bytes())


@dataclass(frozen=True)
class Work:
    """All that decides what a part comes to, besides its documents; whichever process tokenises it."""

    tokenizer: Path
    folder: Path
    """Where the parts are written."""
    seed: int
    quarantines: bool
    """`data.on_bad=quarantine`."""
    functions: Functions
    deduplicate: Literal["exact", "near"] | None


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


def tokenise_part(part: Part, encoder: Encoder, work: Work, advance: Callable[[int], None]) -> None:
    """Writes a part whole. `advance` is told the bytes of it read so far, after each batch: of each shard no more than its size,
    however well it was compressed."""
    before = 0
    with writing(part.tokens_path(work.folder)) as file:
        writer = _PartWriter(file, encoder, work)
        for shard in part.shards:
            writer.begin_shard()
            chars = 0
            for number, document in enumerate(shard.documents(writer.leave_out if work.quarantines else stop)):
                chars += len(document)
                if writer.add(document, f"{shard.name}, document {number}"):
                    advance(before + min(chars, shard.num_bytes))
            writer.end_shard()
            before += shard.num_bytes
        writer.flush()
    advance(before)
    with writing(part.notes_path(work.folder)) as file:
        file.write(writer.notes.to_bytes())
    if work.deduplicate is not None:
        with writing(part.contents_path(work.folder)) as file:
            file.write(b"".join(writer.contents))
    if work.deduplicate == "near":
        with writing(part.signatures_path(work.folder)) as file:
            file.write(np.array(writer.signatures, dtype="<u4").tobytes())
    with writing(part.documents_path(work.folder)) as file:
        file.write(np.array(writer.records, dtype=DOCUMENT).tobytes())


@dataclass
class _PartWriter:
    """A part's documents, tokenised batch by batch. What a shard gave can be taken back as long as the next one has not begun."""

    file: BinaryIO
    encoder: Encoder
    work: Work
    records: list[tuple[int, int]] = field(default_factory=list)
    """Of each document that is written: tokens and hash."""
    contents: list[bytes] = field(default_factory=list)
    """Of each its CONTENT, where duplicates are looked for."""
    signatures: list[NDArray[np.uint32]] = field(default_factory=list)
    """Of each its signature, where near ones are."""
    notes: Notes = field(default_factory=Notes)
    _batch: list[str] = field(default_factory=list)
    _batch_chars: int = 0
    _of_shard: Notes = field(default_factory=Notes)
    _first: int = 0
    """Documents before the shard."""

    def begin_shard(self) -> None:
        self._first, self._of_shard = len(self.records) + len(self._batch), Notes()

    def add(self, document: str, place: str) -> bool:
        """Whether a batch was tokenised and written with it."""
        if is_blank(document):
            return False
        text = self.work.functions.applied(document, place)
        self._of_shard.num_filtered += text is None
        self._of_shard.num_scrubbed += text not in (None, document)
        if text is None or is_blank(text):
            return False
        self._batch.append(text)
        self._batch_chars += len(text)
        if self._batch_chars < _BATCH_CHARS:
            return False
        self.flush()
        return True

    def leave_out(self, error: BadData) -> None:
        self._of_shard.bad.append(error)

    def end_shard(self) -> None:
        whole = [error for error in self._of_shard.bad if error.lost == "shard"]
        if whole:
            self._take_back()
            self._of_shard = Notes(whole[:1])
        self.notes.add(self._of_shard)

    def flush(self) -> None:
        for document, tokens in zip(self._batch, self.encoder.encode(self._batch), strict=True):
            self.file.write(tokens.data)
            data = document.encode()
            self.records.append((len(tokens), xxhash.xxh3_64_intdigest(data, seed=self.work.seed)))
            if self.work.deduplicate is not None:
                self.contents.append(content_of(data))
            if self.work.deduplicate == "near":
                self.signatures.append(signature(tokens[:-1]))
        self._batch, self._batch_chars = [], 0

    def _take_back(self) -> None:
        """Everything that the shard gave."""
        num_written = len(self.records)
        del self._batch[max(0, self._first - num_written) :]
        self._batch_chars = sum(map(len, self._batch))
        if self._first < num_written:
            del self.records[self._first :], self.contents[self._first :], self.signatures[self._first :]
            self.file.seek(sum(num_tokens for num_tokens, _ in self.records) * self.encoder.dtype.itemsize)
            self.file.truncate()
