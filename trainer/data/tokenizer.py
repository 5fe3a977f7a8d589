"""The tokenizer: given as a folder or hub id, or a byte-level BPE trained on the corpus. Saved beside the data it made."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from zerofleet.trainer.data.bad_data import OnBad, stop
from zerofleet.trainer.data.functions import AS_THEY_ARE, Functions
from zerofleet.trainer.data.sources import Corpus, is_blank
from zerofleet.trainer.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EOS = "<|endoftext|>"
"""End of document, of tokenizers trained here."""
SAMPLE_CHARS = 64 * 1024 * 1024
"""Characters of the corpus that a tokenizer is trained on, at most."""
_MAX_PIECE_CHARS = 2 * 1024 * 1024
_GROUP_CHARS = 8 * 1024 * 1024
"""Characters that are in the tokenizer's form at once, at least: several pieces, for as many threads."""


class Encoder:
    """Text to token ids. Documents that spell out a special token get its letters, not the token."""

    def __init__(self, folder: Path) -> None:
        """`folder` is one that `save_trained` or `save_given` wrote."""
        from tokenizers import Tokenizer

        text = (folder / "tokenizer.json").read_text("utf-8")
        self._backend: Tokenizer = Tokenizer.from_str(text)
        # A tokenizer.json may carry both from its last use; here every token counts.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        self.size = 1 + max(self._backend.get_vocab(with_added_tokens=True).values())
        config = json.loads((folder / "tokenizer_config.json").read_bytes())
        eos = config["eos_token"] if isinstance(config["eos_token"], str) else config["eos_token"]["content"]
        self._eos = self._backend.token_to_id(eos)
        self.fingerprint = xxhash.xxh3_128_hexdigest(json.dumps([text, eos]).encode())
        self.dtype = np.dtype("<u2" if self.size <= 2**16 else "<u4")

    def encode(self, documents: list[str]) -> list[NDArray[Any]]:
        """Token ids of each document with EOS at its end, over all CPUs of this process."""
        return list(self._encoded(documents))

    def _encoded(self, documents: list[str]) -> Iterator[NDArray[Any]]:
        arrays: list[NDArray[Any]] = []
        for ids, is_last in self._ids(itertools.chain.from_iterable(map(_pieces, documents))):
            end = (self._eos,) if is_last else ()
            arrays.append(np.fromiter(itertools.chain(ids, end), dtype=self.dtype, count=len(ids) + len(end)))
            if is_last:
                yield arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
                arrays = []

    def _ids(self, pieces: Iterator[tuple[str, bool]]) -> Iterator[tuple[list[int], bool]]:
        """Of each piece, a group at a time: of a huge document no more is in the tokenizer's form at once."""
        group: list[tuple[str, bool]] = []
        num_chars = 0
        for piece, is_last in pieces:
            group.append((piece, is_last))
            num_chars += len(piece)
            if num_chars >= _GROUP_CHARS:
                yield from self._group_ids(group)
                group, num_chars = [], 0
        if group:
            yield from self._group_ids(group)

    def _group_ids(self, group: list[tuple[str, bool]]) -> Iterator[tuple[list[int], bool]]:
        encoded = self._backend.encode_batch_fast([piece for piece, _ in group], add_special_tokens=False)
        return ((encoding.ids, is_last) for encoding, (_, is_last) in zip(encoded, group, strict=True))


def _pieces(document: str) -> Iterator[tuple[str, bool]]:
    """Cuts a huge document behind line ends (the tokenizer needs some 100 bytes per token, and one thread per piece); and whether a
    piece is the last."""
    start = 0
    while len(document) - start > _MAX_PIECE_CHARS:
        cut = document.rfind("\n", start, start + _MAX_PIECE_CHARS) + 1
        end = cut if cut > start else start + _MAX_PIECE_CHARS
        yield document[start:end], False
        start = end
    yield document[start:] if start else document, True


def save_given(name: str, folder: Path) -> None:
    """Loads a tokenizer by folder or hub id and saves it to `folder`. UserError when it is absent or cannot be used."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise UserError(
            f"data.tokenizer={name!r} cannot be loaded ({first_line}): give a folder with tokenizer.json or a hub id that can"
            " be reached, or leave it out and one is trained"
        ) from error
    if not tokenizer.is_fast:
        raise UserError(
            f"data.tokenizer={name!r} has no fast tokenizer (tokenizer.json): convert it with transformers and save it"
        )
    if tokenizer.eos_token is None:
        raise UserError(
            f"data.tokenizer={name!r} has no eos token, which ends every document: set one"
            ' (`tokenizer.eos_token = "</s>"; tokenizer.save_pretrained(...)`) and name that folder'
        )
    tokenizer.save_pretrained(folder)


def save_trained(
    corpus: Corpus, vocab_size: int, folder: Path, on_bad: OnBad = stop, functions: Functions = AS_THEY_ARE
) -> None:
    """Trains a byte-level BPE on a bounded sample and saves it. The same documents give the same file, byte for byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(sample_documents(corpus, SAMPLE_CHARS, on_bad, functions), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(backend.to_str(), "utf-8")
    # As PreTrainedTokenizerFast.save_pretrained writes it; importing transformers for that would take seconds.
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": EOS, "eos_token": EOS}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def sample_documents(
    corpus: Corpus, max_chars: int, on_bad: OnBad = stop, functions: Functions = AS_THEY_ARE
) -> Iterator[str]:
    """All documents that are not blank, as `functions` leave them, or about `max_chars` of them, drawn evenly over the shards of a corpus that is larger."""
    shards = list(enumerate(corpus.shards))
    share = max_chars
    if corpus.num_bytes > max_chars:
        shards.sort(key=lambda item: xxhash.xxh3_64_intdigest(item[0].to_bytes(8, "little")))
        share = max(max_chars // len(shards), _MAX_PIECE_CHARS)
    for _, shard in shards:
        taken = 0
        for number, document in enumerate(shard.documents(on_bad)):
            if max_chars <= 0 or taken >= share:
                break
            text = None if is_blank(document) else functions.applied(document, f"{shard.name}, document {number}")
            if text is not None and not is_blank(text):
                sample = text[: min(share - taken, max_chars)]
                taken += len(sample)
                max_chars -= len(sample)
                yield sample
