"""The prepared corpus as ranks read it: flat memory-mapped tokens, document boundaries and an index, of numpy only.

Layout of a cache folder:

| file | holds |
|---|---|
| `index.json` | counts (in version 2 also of each source), rates, what was left out, dtypes, fingerprints, and size and xxh3-128 of every other file; written last |
| `train.bin`, `heldout.bin` | tokens of the documents, one after the other, each ending with EOS (little endian) |
| `train.ends.bin`, `heldout.ends.bin` | int64: where each document ends in the tokens, exclusive |
| `train.pieces.bin`, `heldout.pieces.bin` | version 2: `packing.PIECE` of every document or part of one, sequence by sequence |
| `train.sequences.bin`, `heldout.sequences.bin` | version 2: `packing.SEQUENCE` of every sequence |
| `tokenizer/` | a folder for `AutoTokenizer.from_pretrained` |

Version 1 holds concatenated documents, version 2 packed ones. A version of its own for what is new leaves the caches that are there as
they are, and with them the data fingerprint that a run's checkpoints were made with.
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

from zerofleet.trainer.config import Packing, StreamConfig
from zerofleet.trainer.data.left_out import LeftOut
from zerofleet.trainer.data.packing import PIECE, SEQUENCE, Rates
from zerofleet.trainer.data.sequences import PackedStore, SequenceStore
from zerofleet.trainer.data.stream.published import TRAIN_TOKENS
from zerofleet.trainer.data.stream.store import StreamedStore
from zerofleet.trainer.errors import DataError
from zerofleet.trainer.storage import storage_errors

FORMAT_VERSIONS: dict[Packing, int] = {"concatenate": 1, "best_fit": 2}
INDEX_NAME = "index.json"
TOKENIZER_NAME = "tokenizer"
SPLITS = ("train", "heldout")
NOT_CONTENT = ("fingerprint", "rates", "left_out", "functions")
"""Keys of the index that say nothing about what ranks are fed. Caches of zerofleet 0.3 have no rates."""


@dataclass(frozen=True)
class DataCache:
    """A prepared corpus. `fingerprint` says what ranks are fed: equal content and sequence length, equal fingerprint."""

    path: Path
    fingerprint: str
    tokenizer_fingerprint: str
    tokenizer_size: int
    """Largest token id + 1."""
    token_dtype: np.dtype[Any]
    train: SequenceStore
    heldout: SequenceStore
    rates: dict[str, Rates]
    """By split; empty where the cache was made before there were any."""
    left_out: LeftOut
    """What it lacks of its corpus."""

    @property
    def tokenizer_path(self) -> Path:
        """Folder for `AutoTokenizer.from_pretrained`."""
        return self.path / TOKENIZER_NAME

    @staticmethod
    def open(path: Path, stream: StreamConfig | None = None) -> DataCache:
        """Maps a finished cache; with `stream`, one whose training tokens are read from there. DataError when it is not finished,
        damaged, or of another format version."""
        with storage_errors("reading", str(path), setting="data.cache"):
            index = _read_index(path)
            for name, file in index["files"].items():
                if stream is not None and name == TRAIN_TOKENS:
                    continue
                size = (path / name).stat().st_size if (path / name).exists() else 0
                if size != file["bytes"]:
                    raise _damaged(path, f"{name} has {size} of {file['bytes']} bytes")
            train, heldout = (_open_split(path, split, index, stream) for split in SPLITS)
        return DataCache(
            path=path,
            fingerprint=train.published.fingerprint if isinstance(train, StreamedStore) else index["fingerprint"],
            tokenizer_fingerprint=index["tokenizer_fingerprint"],
            tokenizer_size=index["tokenizer_size"],
            token_dtype=np.dtype(index["token_dtype"]),
            train=train,
            heldout=heldout,
            rates={split: Rates(**rates) for split, rates in index.get("rates", {}).items()},
            left_out=LeftOut.from_dict(index["left_out"]) if "left_out" in index else LeftOut(),
        )

    def verify(self) -> None:
        """Reads every file once. DataError when one is not what the index says."""
        with storage_errors("reading", str(self.path), setting="data.cache"):
            for name, file in _read_index(self.path)["files"].items():
                if isinstance(self.train, StreamedStore) and name == TRAIN_TOKENS:
                    continue  # its shards are compared whenever they are opened
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


def _open_split(path: Path, split: str, index: dict[str, Any], stream: StreamConfig | None) -> SequenceStore:
    dtype, ends = np.dtype(index["token_dtype"]), mapped(path / f"{split}.ends.bin", np.dtype("<i8"))
    if stream is None or split != SPLITS[0]:
        return _store(path, split, index, mapped(path / f"{split}.bin", dtype), ends)
    nowhere = np.broadcast_to(np.zeros((), dtype), index["tokens"][split])  # takes no memory
    return StreamedStore.of(_store(path, split, index, nowhere, ends), path, stream, dtype)


def _store(path: Path, split: str, index: dict[str, Any], tokens: NDArray[Any], ends: NDArray[Any]) -> SequenceStore:
    if index["version"] == FORMAT_VERSIONS["concatenate"]:
        return SequenceStore(tokens, ends, index["sequence_length"])
    tables = mapped(path / f"{split}.pieces.bin", PIECE), mapped(path / f"{split}.sequences.bin", SEQUENCE)
    return PackedStore(tokens, ends, index["sequence_length"], *tables, source_sizes=index["sources"][split])


def content_fingerprint(index: dict[str, Any]) -> str:
    """Hex of what the index says about content; where and when the cache was made is no part of it."""
    parts = {key: value for key, value in index.items() if key not in NOT_CONTENT}
    return xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True).encode())


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index: dict[str, Any] = json.loads((path / INDEX_NAME).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path} holds no prepared data ({INDEX_NAME} is missing): prepare the data first") from None
    except ValueError as error:
        raise _damaged(path, f"{INDEX_NAME} is not JSON: {error}") from error
    if index.get("version") not in FORMAT_VERSIONS.values():
        known = " and ".join(map(str, FORMAT_VERSIONS.values()))
        raise DataError(
            f"{path} was prepared in format version {index.get('version')}, this zerofleet reads {known}:"
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
