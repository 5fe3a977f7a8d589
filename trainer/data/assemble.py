"""The last stage of preparation: finished parts become the two splits of the cache, then the index is written."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray

from zerofleet.trainer.config import DataConfig
from zerofleet.trainer.data.cache import FORMAT_VERSIONS, INDEX_NAME, SPLITS, content_fingerprint, mapped
from zerofleet.trainer.data.duplicates import first_copies, unlike
from zerofleet.trainer.data.functions import Functions
from zerofleet.trainer.data.left_out import LeftOut
from zerofleet.trainer.data.local_files import writing
from zerofleet.trainer.data.packing import packed, rates_when_concatenated, rates_when_packed
from zerofleet.trainer.data.parts import Part
from zerofleet.trainer.data.sources import Corpus
from zerofleet.trainer.data.tokenizer import Encoder
from zerofleet.trainer.errors import DataError

_NOWHERE = -1
"""Of a document that goes into neither split."""


def write_cache(
    folder: Path,
    parts_folder: Path,
    parts: Sequence[Part],
    corpus: Corpus,
    encoder: Encoder,
    data: DataConfig,
) -> None:
    """Splits documents by hash, writes the flat files and, last, the index. DataError when nothing is left to train on."""
    kept, left_out = _kept(parts_folder, parts, data)
    limit = _heldout_limit(parts_folder, parts, kept, left_out, data.heldout_fraction)
    with ExitStack() as stack:
        splits = [_SplitWriter(folder, split, stack) for split in SPLITS]
        for source, group in itertools.groupby(parts, lambda part: corpus.source_of(part.first)):
            for part in group:
                documents = part.read_documents(parts_folder)
                where = (
                    np.zeros(len(documents), np.int8) if limit is None else (documents["hash"] <= limit).view(np.int8)
                )
                if kept is not None:
                    where = np.where(kept[part.first], where, _NOWHERE)
                _deal(mapped(part.tokens_path(parts_folder), encoder.dtype), documents["num_tokens"], where, splits)
            for split in splits:
                split.source_ends.append(split.num_documents)
            if data.sources and splits[0].source_ends[source] == splits[0].source_ends[source - 1] * (source > 0):
                raise DataError(
                    f"data.sources.{corpus.sources[source]} has nothing to train on: its documents are blank, left out or held out"
                    f" (data.heldout_fraction={data.heldout_fraction}): add documents, or remove it"
                )
        train, rest = splits
        if train.num_tokens < 2:
            raise DataError(
                f"nothing is left to train on: all {rest.num_documents} documents are held out (a copy goes where the first goes;"
                f" data.heldout_fraction={data.heldout_fraction}): add documents, or set data.heldout_fraction=0"
            )
    _write_index(folder, splits, corpus, encoder, data, left_out)


def _write_index(
    folder: Path, splits: list[_SplitWriter], corpus: Corpus, encoder: Encoder, data: DataConfig, left_out: LeftOut
) -> None:
    """Lays sequences over the splits, and says what all files are."""
    files = {name: entry for split in splits for name, entry in split.files.entries().items()}
    rates, sources = {}, {}
    for split in splits:
        ends = mapped(folder / f"{split.name}.ends.bin", np.dtype("<i8"))
        if data.packing == "best_fit":
            tables, sources[split.name] = _write_packing(folder, split, ends, data.sequence_length)
            rates[split.name] = rates_when_packed(ends, sum(sources[split.name]), data.sequence_length)
            files |= tables
        else:
            rates[split.name] = rates_when_concatenated(ends, data.sequence_length)
    index: dict[str, Any] = {
        "version": FORMAT_VERSIONS[data.packing],
        "sequence_length": data.sequence_length,
        "token_dtype": encoder.dtype.str,
        "tokenizer_fingerprint": encoder.fingerprint,
        "tokenizer_size": encoder.size,
        "files": files,
        "documents": {split.name: split.num_documents for split in splits},
        "tokens": {split.name: split.num_tokens for split in splits},
        "rates": {name: split_rates.to_dict() for name, split_rates in rates.items()},
    }
    if left_out:
        index["left_out"] = left_out.to_dict()
    if functions := Functions.of(data.filter, data.scrub).fingerprints:
        index["functions"] = functions
    if data.packing == "best_fit":
        index["sources"] = {"names": list(corpus.sources), **sources}
    index["fingerprint"] = content_fingerprint(index)
    with writing(folder / INDEX_NAME) as file:
        file.write(json.dumps(index, indent=1).encode())


def _kept(
    parts_folder: Path, parts: Sequence[Part], data: DataConfig
) -> tuple[dict[int, NDArray[np.bool_]] | None, LeftOut]:
    """Which documents of each part, by its first shard, stay when duplicates go; None when all do. And what is left out in all."""
    notes = [part.read_notes(parts_folder) for part in parts]
    if data.deduplicate is None or not parts:
        return None, LeftOut.of(notes)
    contents = np.concatenate([part.read_contents(parts_folder) for part in parts])
    is_kept = first_copies(contents)
    num_equal = int((~is_kept).sum())
    if data.deduplicate == "near":
        single = np.flatnonzero(is_kept)
        lengths = np.concatenate([part.read_documents(parts_folder)["num_tokens"] for part in parts])
        signatures = np.concatenate([part.read_signatures(parts_folder) for part in parts])
        is_kept[single] = unlike(contents[single], lengths[single], signatures[single])
    num_near = int((~is_kept).sum()) - num_equal
    ends = np.cumsum([len(part.read_documents(parts_folder)) for part in parts])[:-1]
    by_part = zip(parts, np.split(is_kept, ends), strict=True)
    return {part.first: mask for part, mask in by_part}, LeftOut.of(notes, num_equal, num_near)


def _heldout_limit(
    parts_folder: Path,
    parts: Sequence[Part],
    kept: dict[int, NDArray[np.bool_]] | None,
    left_out: LeftOut,
    heldout_fraction: float,
) -> int | None:
    """Documents whose hash is at most this are held out; None holds out none.

    A corpus so small that none would be gives up the one with the smallest hash (and its copies).
    """
    num_documents, smallest = 0, 2**64 - 1
    for part in parts:
        hashes = part.read_documents(parts_folder)["hash"]
        hashes = hashes if kept is None else hashes[kept[part.first]]
        num_documents += len(hashes)
        smallest = min(smallest, int(hashes.min(initial=smallest)))
    if num_documents == 0:
        num_bytes = sum(part.num_bytes for part in parts)
        num_shards = sum(len(part.shards) for part in parts)
        raise DataError(
            f"the corpus is empty: {num_shards} files or row ranges with {num_bytes} bytes hold no document with text"
            + (f", {left_out}" if left_out else "")
            + ": check data.files, data.format and data.text_field"
        )
    return max(int(heldout_fraction * 2**64) - 1, smallest) if heldout_fraction > 0 else None


class _SplitWriter:
    """Appends documents to `<split>.bin` and `<split>.ends.bin`."""

    def __init__(self, folder: Path, name: str, stack: ExitStack) -> None:
        self.name = name
        self.num_tokens = self.num_documents = 0
        self.source_ends: list[int] = []
        """Documents up to the end of each source that is done."""
        self.files = _HashedFiles(folder, (f"{name}.bin", f"{name}.ends.bin"), stack)

    def append(self, tokens: NDArray[Any], lengths: NDArray[np.int64]) -> None:
        """`tokens` of consecutive documents of these lengths."""
        ends = self.num_tokens + np.cumsum(lengths, dtype="<i8")
        self.num_tokens += len(tokens)
        self.num_documents += len(lengths)
        self.files.append(tokens, ends)


def _write_packing(
    folder: Path, split: _SplitWriter, document_ends: NDArray[np.int64], sequence_length: int
) -> tuple[dict[str, Any], list[int]]:
    """Packs a split, each source by itself, into `<split>.pieces.bin` and `<split>.sequences.bin`. Returns their entries in the index,
    and the sequences of each source."""
    num_pieces = 0
    sizes = [0] * len(split.source_ends)
    with ExitStack() as stack:
        files = _HashedFiles(folder, (f"{split.name}.pieces.bin", f"{split.name}.sequences.bin"), stack)
        for source, (first, stop) in enumerate(itertools.pairwise([0, *split.source_ends])):
            for pieces, sequences in packed(document_ends, sequence_length, first, stop, num_pieces):
                files.append(pieces, sequences)
                num_pieces += len(pieces)
                sizes[source] += len(sequences)
    return files.entries(), sizes


class _HashedFiles:
    """New files of the cache that are written side by side, hashed on the way."""

    def __init__(self, folder: Path, names: Sequence[str], stack: ExitStack) -> None:
        self._files: dict[str, BinaryIO] = {name: stack.enter_context(writing(folder / name)) for name in names}
        self._hashes = {name: xxhash.xxh3_128() for name in names}
        self._bytes = dict.fromkeys(names, 0)

    def append(self, *arrays: NDArray[Any]) -> None:
        """To each file, in the order of their names."""
        for (name, file), array in zip(self._files.items(), arrays, strict=True):
            data = np.ascontiguousarray(array).view(np.uint8).data
            file.write(data)
            self._hashes[name].update(data)
            self._bytes[name] += array.nbytes

    def entries(self) -> dict[str, dict[str, Any]]:
        """As the index lists them."""
        return {name: {"bytes": self._bytes[name], "xxh3_128": self._hashes[name].hexdigest()} for name in self._files}


def _deal(
    tokens: NDArray[Any], lengths: NDArray[np.int64], where: NDArray[np.int8], splits: Sequence[_SplitWriter]
) -> None:
    """Appends each run of documents of one split to it: `where` is the index of each document's in `splits`, or _NOWHERE."""
    if len(lengths) == 0:
        return
    ends = np.cumsum(lengths)
    run_starts = [0, *(np.flatnonzero(np.diff(where)) + 1)]
    for start, stop in zip(run_starts, [*run_starts[1:], len(lengths)], strict=True):
        if where[start] != _NOWHERE:
            first = ends[start] - lengths[start]
            splits[int(where[start])].append(tokens[first : ends[stop - 1]], lengths[start:stop])
