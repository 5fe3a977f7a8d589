"""One corpus written out as a part for each silo, for experiments: partition.py says which silo a document belongs to."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from zerofleet.trainer.config import DataConfig
from zerofleet.trainer.data.bad_data import leave_out, stop
from zerofleet.trainer.data.local_files import publish
from zerofleet.trainer.data.sources import Corpus, is_blank, resolve
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.silos.partition import partition_documents
from zerofleet.trainer.storage import storage_errors

Label = Literal["source", "folder", "file"]
"""What a document's label is: the name of its source in `data.sources`, the folder of its file, or the file."""
SUMMARY = "partition.json"


@dataclass(frozen=True)
class Dealing:
    """How a corpus is dealt out."""

    partitioner: str
    """As flwr-datasets calls it."""
    num_parts: int
    label: Label
    seed: int
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """What one silo gets."""

    path: Path
    labels: dict[str, int]
    """Documents by label, those of which it has most first."""

    @property
    def num_documents(self) -> int:
        return sum(self.labels.values())


def deal(data: DataConfig, dealing: Dealing, folder: Path) -> list[Part]:
    """Writes `folder`, which appears when it is whole: part-0.jsonl, part-1.jsonl, ... with a document in each line's `text`, and partition.json
    with how they came about. The corpus is read twice: for the labels, and to write it; only a number per document is in memory.

    Raises UserError where the folder is there already, and what `resolve` and `partition_documents` raise; bad data as `data.on_bad` says;
    StorageError.
    """
    if folder.exists():
        raise UserError(f"{folder} exists already: name another folder, or remove it")
    corpus = resolve(data)
    names: dict[str, int] = {}
    labels = [names.setdefault(label, len(names)) for label, _ in _labelled(corpus, data, dealing.label)]
    # By name, since NaturalIdPartitioner takes labels in their order and numbers would be in that of the files.
    by_number = list(names)
    silos = partition_documents(
        dealing.partitioner, [by_number[label] for label in labels], dealing.num_parts, dealing.seed, dealing.options
    )
    draft = folder.with_name(f"{folder.name}.{os.getpid()}")
    with storage_errors("writing", str(folder), setting="FOLDER"):
        try:
            draft.mkdir(parents=True)
            counts = _write(_labelled(corpus, data, dealing.label), silos.tolist(), dealing.num_parts, draft)
            parts = [Part(folder / path_of(number), dict(count.most_common())) for number, count in enumerate(counts)]
            summary = {
                **vars(dealing),
                "files": data.files,
                "parts": [{"file": p.path.name, "labels": p.labels} for p in parts],
            }
            (draft / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n")
            publish(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return parts


def path_of(number: int) -> str:
    """Of a part, in the folder."""
    return f"part-{number}.jsonl"


def _labelled(corpus: Corpus, data: DataConfig, label: Label) -> Iterator[tuple[str, str]]:
    """Each document that counts, with its label, in the order of the corpus."""
    for index, shard in enumerate(corpus.shards):
        name = {
            "source": corpus.sources[corpus.source_of(index)],
            "folder": str(Path(shard.name).parent),
            "file": shard.name,
        }[label]
        for document in shard.documents(leave_out if data.on_bad == "quarantine" else stop):
            if not is_blank(document):
                yield name, document


def _write(
    documents: Iterator[tuple[str, str]], silos: Sequence[int], num_parts: int, folder: Path
) -> list[Counter[str]]:
    counts = [Counter[str]() for _ in range(num_parts)]
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context((folder / path_of(number)).open("w")) for number in range(num_parts)]
        for (label, document), silo in zip(documents, silos, strict=True):
            files[silo].write(json.dumps({"text": document}) + "\n")
            counts[silo][label] += 1
        for file in files:
            file.flush()
            os.fsync(file.fileno())
    return counts
