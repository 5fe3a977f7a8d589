"""What gives sequences in shuffled order: zerofleet's feed, litdata and MosaicML streaming, each as blocks of int64 tensors.

litdata and MosaicML streaming are no part of the project's environment: the latter wants transformers below 5 and numpy below
2.2. `loader.INSTALL` says how to have them beside it.
"""

from __future__ import annotations

import itertools
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zerofleet.trainer.batch import BatchPlan
from zerofleet.trainer.config import DEFAULT_SILO
from zerofleet.trainer.data.feed import Feed
from zerofleet.trainer.data.packing import PIECE, SEQUENCE, packed
from zerofleet.trainer.data.sequences import PackedStore, SequenceStore

Block = tuple[torch.Tensor, torch.Tensor]
"""Input ids and labels, int64 [block_size, sequence_length]."""

VOCABULARY = 32_000
DOCUMENT_TOKENS = 800
"""Mean length of the documents, drawn from a log-normal distribution."""
_WRITTEN_SEQUENCES = 4096


@dataclass(frozen=True)
class Corpus:
    """Random tokens in a folder: no loader looks at what they say, and nothing is compressed."""

    folder: Path
    sequence_length: int
    num_sequences: int
    block_size: int
    """Sequences per block."""
    blocks_per_step: int = 16
    """Zerofleet plans a global batch of so many blocks at a time."""
    seed: int = 1

    def write(self) -> None:
        """The tokens and where their documents end."""
        draw = np.random.default_rng(self.seed)
        num_tokens = self.num_sequences * self.sequence_length + 1
        tokens = draw.integers(1, VOCABULARY, num_tokens, dtype=np.uint16)
        spread = 1.0
        lengths = draw.lognormal(np.log(DOCUMENT_TOKENS) - spread**2 / 2, spread, 2 * num_tokens // DOCUMENT_TOKENS)
        ends = np.cumsum(np.maximum(lengths, 2).astype(np.int64))
        ends = np.append(ends[ends < num_tokens], num_tokens)
        tokens[ends - 1] = 0  # EOS
        tokens.tofile(self.folder / "tokens.bin")
        ends.astype("<i8").tofile(self.folder / "ends.bin")

    def store(self) -> SequenceStore:
        """Concatenated documents: sequence i is tokens [iL, iL + L + 1)."""
        return SequenceStore(self._mapped("tokens.bin", "<u2"), self._mapped("ends.bin", "<i8"), self.sequence_length)

    def packed_store(self) -> PackedStore:
        """The same documents, packed."""
        ends = self._mapped("ends.bin", "<i8")
        tables = list(packed(ends, self.sequence_length))
        pieces, sequences = (np.concatenate(parts) for parts in zip(*tables, strict=True))
        assert pieces.dtype == PIECE and sequences.dtype == SEQUENCE
        return PackedStore(self._mapped("tokens.bin", "<u2"), ends, self.sequence_length, pieces, sequences)

    def rows(self) -> Iterator[NDArray[np.uint16]]:
        """Every sequence with its last label, uint16 [n, L + 1], a few at a time: what the peers' files are made of."""
        tokens = self._mapped("tokens.bin", "<u2")
        rows = np.lib.stride_tricks.sliding_window_view(tokens, self.sequence_length + 1)[:: self.sequence_length]
        for first in range(0, self.num_sequences, _WRITTEN_SEQUENCES):
            yield np.ascontiguousarray(rows[first : first + _WRITTEN_SEQUENCES])

    def _mapped(self, name: str, dtype: str) -> NDArray[Any]:
        return np.asarray(np.memmap(self.folder / name, dtype=dtype, mode="r"))


# -- zerofleet ----------------------------------------------------------------------------------------------------------
def zerofleet(corpus: Corpus) -> Iterator[Block]:
    """What a single rank is fed, planned step by step and with its digests, as in a run."""
    return _fed(corpus, corpus.store())


def zerofleet_best_fit(corpus: Corpus) -> Iterator[Block]:
    """The same with packed documents."""
    return _fed(corpus, corpus.packed_store())


def _fed(corpus: Corpus, store: SequenceStore) -> Iterator[Block]:
    plan = BatchPlan.of(corpus.blocks_per_step * corpus.block_size, corpus.block_size, 1)
    feed = Feed(store, plan, corpus.seed, DEFAULT_SILO, ())
    for step in itertools.count():
        for batch in feed.micro_batches(feed.step_plan(step), 0):
            yield torch.from_numpy(batch.inputs["input_ids"]), torch.from_numpy(batch.labels)


# -- litdata ------------------------------------------------------------------------------------------------------------
def write_litdata(corpus: Corpus) -> None:
    """As its README does for training a language model: chunks of tokens without headers, some 64 MB each."""
    from litdata import TokensLoader
    from litdata.streaming import Cache

    chunk_sequences = 2**25 // (corpus.sequence_length + 1)
    cache = Cache(
        str(corpus.folder / "litdata"),
        chunk_size=chunk_sequences * (corpus.sequence_length + 1),
        item_loader=TokensLoader(block_size=corpus.sequence_length + 1),
    )
    for index, row in enumerate(itertools.chain.from_iterable(corpus.rows())):
        cache[index] = row
    cache.done()
    cache.merge(1)


def litdata(corpus: Corpus) -> Iterator[Block]:
    """Chunks in random order, and all sequences of a chunk (`item_shuffle_window="full"`)."""
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader

    dataset = StreamingDataset(
        str(corpus.folder / "litdata"),
        item_loader=TokensLoader(block_size=corpus.sequence_length + 1),
        shuffle=True,
        seed=corpus.seed,
        item_shuffle_window="full",
    )
    loader = StreamingDataLoader(dataset, batch_size=corpus.block_size, num_workers=0)
    return _split(itertools.chain.from_iterable(itertools.repeat(loader)))


# -- MosaicML streaming -------------------------------------------------------------------------------------------------
def _import_streaming() -> Any:
    # Its images want torchvision, whose compiled part has to be of the same build as torch; token sequences need none of it.
    sys.modules.setdefault("streaming.vision", types.ModuleType("streaming.vision"))
    import streaming

    return streaming


def write_streaming(corpus: Corpus) -> None:
    """Shards of the default size (64 MiB), a fixed-size array per sequence."""
    columns = {"tokens": f"ndarray:uint16:{corpus.sequence_length + 1}"}
    with _import_streaming().MDSWriter(columns=columns, out=str(corpus.folder / "streaming")) as writer:
        for row in itertools.chain.from_iterable(corpus.rows()):
            writer.write({"tokens": row})


def streaming(corpus: Corpus) -> Iterator[Block]:
    """All sequences shuffled (`shuffle_algo="naive"`)."""
    return _streaming(corpus, "naive")


def streaming_default(corpus: Corpus) -> Iterator[Block]:
    """Its default shuffle, by blocks."""
    return _streaming(corpus, "py1e")


def _streaming(corpus: Corpus, shuffle_algo: str) -> Iterator[Block]:
    library = _import_streaming()
    library.base.util.clean_stale_shared_memory()
    dataset = library.StreamingDataset(
        local=str(corpus.folder / "streaming"),
        shuffle=True,
        shuffle_algo=shuffle_algo,
        shuffle_seed=corpus.seed,
        batch_size=corpus.block_size,
        num_canonical_nodes=1,
    )
    loader = library.StreamingDataLoader(dataset, batch_size=corpus.block_size, num_workers=0)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    return _split(batch["tokens"] for batch in batches)


def _split(rows: Iterator[torch.Tensor]) -> Iterator[Block]:
    """As litgpt does with litdata's batches (litgpt/pretrain.py)."""
    for tokens in rows:
        yield tokens[:, :-1].contiguous().long(), tokens[:, 1:].contiguous().long()


LOADERS: dict[str, Callable[[Corpus], Iterator[Block]]] = {
    "zerofleet": zerofleet,
    "zerofleet_best_fit": zerofleet_best_fit,
    "litdata": litdata,
    "streaming": streaming,
    "streaming_default": streaming_default,
}
