"""The model of a job as a plan sees it: by closed forms where its type is known, else counted on meta tensors, where torch is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zerofleet.launch.config import JobConfig
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.sizing import ModelSizes, sizes_of, vocabulary_of


@dataclass(frozen=True)
class PlannedModel:
    """Sizes, and where they are from."""

    sizes: ModelSizes
    source: str


def planned_by_closed_form(job: JobConfig) -> PlannedModel | None:
    """None for a type that is not known without torch, or a vocabulary that only the tokenizer tells. UserError for a size that no model
    has."""
    fields, vocabulary = _described(job)
    sizes = None if vocabulary is None else sizes_of(fields, vocabulary)
    return None if sizes is None else PlannedModel(sizes, "closed form")


def model_of(job: JobConfig) -> PlannedModel:
    """UserError when neither a closed form nor transformers knows the model, or nothing says how large its vocabulary is."""
    if planned := planned_by_closed_form(job):
        return planned
    fields, vocabulary = _described(job)
    if vocabulary is None and job.model.pretrained is None:
        raise UserError(
            f"the vocabulary of the model is not known before the tokenizer {job.data.tokenizer!r} is loaded: set model.config.vocab_size"
        )
    try:
        from zerofleet.trainer.meta_model import measure  # needs torch and transformers
    except ImportError as error:
        raise UserError(
            f"model type {fields.get('model_type', job.model.pretrained)!r} is counted on meta tensors, which needs {error.name}: "
            "pip install 'zerofleet[train]', or plan with a llama, mistral, qwen2, qwen3, gpt2 or gpt_neox of the same sizes"
        ) from error
    sizes = measure(job.model, vocabulary, job.train.precision, job.data.sequence_length)
    return PlannedModel(sizes, "meta tensors")


def _described(job: JobConfig) -> tuple[Mapping[str, Any], int | None]:
    """`model.config`'s fields, or those of a local folder's config.json; and the rows of the embedding, as far as they say."""
    if job.model.pretrained is None:
        return job.model.config, vocabulary_of(job.train_config())
    file = Path(job.model.pretrained) / "config.json"
    if not file.is_file():
        return {}, None
    try:
        fields = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}): download the model again") from error
    vocabulary = fields.get("vocab_size")
    return fields, vocabulary if isinstance(vocabulary, int) else None
