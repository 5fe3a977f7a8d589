"""The prepared corpus as ranks read it: flat memory-mapped tokens, document boundaries and an index, of numpy only.

Layout of a cache folder (format version 1):

| file | holds |
|---|---|
| `index.json` | counts, dtypes, fingerprints, and size and xxh3-128 of every other file; written last |
| `train.bin`, `heldout.bin` | tokens of the documents, one after the other, each ending with EOS (little endian) |
| `train.ends.bin`, `heldout.ends.bin` | int64: where each document ends in the tokens, exclusive |
| `tokenizer/` | a folder for `AutoTokenizer.from_pretrained` |
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from zerofleet.trainer.errors import DataError
from zerofleet.trainer.storage import storage_errors

Int64 = NDArray[np.int64]

FORMAT_VERSION = 1
INDEX_NAME = "index.json"
TOKENIZER_NAME = "tokenizer"
SPLITS = ("train", "heldout")
IGNORED_LABEL = -100
"""Label of padding: cross-entropy leaves it out."""


class SequenceStore:
    """The sequences of one split. Sequence i is tokens [iL, iL + L + 1): L inputs, and the same shifted by one as labels.

    Every token but the first is a target exactly once; the last sequence may be short and is then padded.
    """

    def __init__(self, tokens: NDArray[Any], document_ends: Int64, sequence_length: int) -> None:
        self.document_ends = document_ends
        self.sequence_length = sequence_length
        self.num_tokens = len(tokens)
        self._num_all_targets = max(0, len(tokens) - 1)
        self.num_sequences = -(-self._num_all_targets // sequence_length)
        num_full = self._num_all_targets // sequence_length
        # Views of the memory map, a row per full sequence: a batch is then two gathers, with no loop in Python.
        self._inputs = tokens[: num_full * sequence_length].reshape(num_full, sequence_length)
        self._labels = tokens[1 : num_full * sequence_length + 1].reshape(num_full, sequence_length)
        self._rest = tokens[num_full * sequence_length :]

    def num_targets(self, indices: Int64) -> Int64:
        """Real target tokens of each sequence, from the counts alone. IndexError outside [0, num_sequences)."""
        self._check(indices)
        return np.minimum(self.sequence_length, self._num_all_targets - indices * self.sequence_length)

    def read(self, indices: Int64) -> tuple[Int64, Int64]:
        """Input ids and labels, int64 [len(indices), L]; padding has input id 0 and label -100."""
        self._check(indices)
        short = indices >= len(self._inputs)
        if not short.any():
            return self._inputs[indices].astype(np.int64), self._labels[indices].astype(np.int64)
        input_ids = np.zeros((len(indices), self.sequence_length), dtype=np.int64)
        labels = np.full_like(input_ids, IGNORED_LABEL)
        input_ids[~short] = self._inputs[indices[~short]]
        labels[~short] = self._labels[indices[~short]]
        input_ids[short, : len(self._rest) - 1] = self._rest[:-1]
        labels[short, : len(self._rest) - 1] = self._rest[1:]
        return input_ids, labels

    def _check(self, indices: Int64) -> None:
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.num_sequences:
            raise IndexError(
                f"sequences {indices.min()} to {indices.max()} asked for, of a store that holds {self.num_sequences}"
            )


@dataclass(frozen=True)
class DataCache:
    """A prepared corpus. `fingerprint` says what ranks are fed: equal content and sequence length, equal fingerprint."""

    path: Path
    fingerprint: str
    tokenizer_fingerprint: str
    tokenizer_size: int
    """Largest token id + 1."""
    train: SequenceStore
    heldout: SequenceStore

    @property
    def tokenizer_path(self) -> Path:
        """Folder for `AutoTokenizer.from_pretrained`."""
        return self.path / TOKENIZER_NAME

    @staticmethod
    def open(path: Path) -> DataCache:
        """Maps a finished cache. DataError when it is not finished, damaged, or of another format version."""
        with storage_errors("reading", str(path), setting="data.cache"):
            index = _read_index(path)
            for name, file in index["files"].items():
                size = (path / name).stat().st_size if (path / name).exists() else 0
                if size != file["bytes"]:
                    raise _damaged(path, f"{name} has {size} of {file['bytes']} bytes")
            stores = [
                SequenceStore(
                    mapped(path / f"{split}.bin", np.dtype(index["token_dtype"])),
                    mapped(path / f"{split}.ends.bin", np.dtype("<i8")),
                    index["sequence_length"],
                )
                for split in SPLITS
            ]
        return DataCache(
            path=path,
            fingerprint=index["fingerprint"],
            tokenizer_fingerprint=index["tokenizer_fingerprint"],
            tokenizer_size=index["tokenizer_size"],
            train=stores[0],
            heldout=stores[1],
        )

    def verify(self) -> None:
        """Reads every file once. DataError when one is not what the index says."""
        with storage_errors("reading", str(self.path), setting="data.cache"):
            for name, file in _read_index(self.path)["files"].items():
                found = xxhash.xxh3_128(mapped(self.path / name, np.dtype(np.uint8)).data).hexdigest()
                if found != file["xxh3_128"]:
                    raise _damaged(self.path, f"{name} does not match its hash")


def prepared_in(root: Path) -> dict[str, Path]:
    """Fingerprint and folder of all prepared data in a folder, or of the folder itself when it is some."""
    found = {}
    for index in [root / INDEX_NAME, *sorted(root.glob(f"*/{INDEX_NAME}"))]:
        with contextlib.suppress(DataError):
            found[str(_read_index(index.parent)["fingerprint"])] = index.parent
    return found


def content_fingerprint(index: dict[str, Any]) -> str:
    """Hex of what the index says about content; where and when the cache was made is no part of it."""
    parts = {key: value for key, value in index.items() if key != "fingerprint"}
    return xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True).encode())


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index: dict[str, Any] = json.loads((path / INDEX_NAME).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path} holds no prepared data ({INDEX_NAME} is missing): prepare the data first") from None
    except ValueError as error:
        raise _damaged(path, f"{INDEX_NAME} is not JSON: {error}") from error
    if index.get("version") != FORMAT_VERSION:
        raise DataError(
            f"{path} was prepared in format version {index.get('version')}, this zerofleet reads {FORMAT_VERSION}:"
            " remove that folder and it is prepared again"
        )
    if index.get("fingerprint") != content_fingerprint(index):
        raise _damaged(path, f"{INDEX_NAME} does not match its own fingerprint")
    return index


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"prepared data in {path} is damaged ({what}): remove that folder and it is prepared again")


def mapped(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A file as a read-only array over its memory map."""
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype=dtype)
    # A plain ndarray over the map: slicing np.memmap itself costs microseconds per row.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))
