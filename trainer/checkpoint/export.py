"""A checkpoint as a Hugging Face model folder. Reads byte ranges; never holds more than one shard in memory."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig

from zerofleet.trainer.checkpoint.format import CheckpointReader, DamagedFile
from zerofleet.trainer.checkpoint.fragments import MASTER, VALUE
from zerofleet.trainer.checkpoint.select import select_checkpoint
from zerofleet.trainer.config import Precision
from zerofleet.trainer.errors import CheckpointUnusable, NotFoundError, UserError
from zerofleet.trainer.model import DTYPES
from zerofleet.trainer.run_folder import CheckpointId, RunFolder
from zerofleet.trainer.storage import storage_errors

SHARD_BYTES = 4 * 1024**3
"""Largest weight file of an export."""
_EXPORTED = re.compile(r"model[\w-]*\.safetensors(\.index\.json)?|\w+\.(json|txt|model|jinja)")
MODEL_FOLDER = "model"
"""Folder of the run with the model's config and tokenizer, so that an export needs nothing else."""


def publish_model_files(run: RunFolder, config: PretrainedConfig, tokenizer_path: Path) -> None:
    """Puts the model's config and tokenizer into the run folder, once. Raises StorageError."""
    if run.storage.exists(f"{MODEL_FOLDER}/config.json"):
        return
    config.architectures = [AutoModelForCausalLM._model_mapping[type(config)].__name__]
    files = {path.name: path.read_bytes() for path in sorted(tokenizer_path.iterdir()) if path.is_file()}
    files["config.json"] = config.to_json_string(use_diff=True).encode()
    for name in sorted(files, key=lambda name: name == "config.json"):
        if not run.storage.exists(f"{MODEL_FOLDER}/{name}"):
            run.storage.create(f"{MODEL_FOLDER}/{name}", files[name])


def export(run: RunFolder, checkpoint: CheckpointId | None, target: Path | None, dtype: Precision) -> str:
    """Writes `target` (by default the run's `export/`) and returns its path or URL; loads with `AutoModelForCausalLM`.

    `checkpoint` None takes the newest whose manifest, sizes and headers verify; blocks are verified as they are read. With fp32 the weights are the master weights themselves. An export
    that is there already is replaced when the new one is whole; a folder with anything else in it is refused. Raises
    UserError, NotFoundError, CheckpointUnusable, StorageError.
    """
    if target is not None:
        _refuse_foreign_files(target.absolute())
    if checkpoint is None:
        checkpoint = select_checkpoint(run).checkpoint
        if checkpoint is None:
            raise NotFoundError(f"run {run.name!r} has no checkpoint that can be exported")
    place = _workplace(run, target)
    with storage_errors("exporting to", str(target or place)):
        workplace = tempfile.TemporaryDirectory(prefix=".export-", dir=place)
    with workplace as name:
        folder = Path(name) / "export"
        folder.mkdir()
        with storage_errors("exporting to", str(folder)):
            _write_model_files(run, folder, dtype)
            try:
                _write_weights(CheckpointReader(run.storage, checkpoint), folder, dtype)
            except DamagedFile as error:
                raise CheckpointUnusable(checkpoint.step, checkpoint.attempt, str(error)) from error
            return _deliver(run, folder, target)


def _workplace(run: RunFolder, target: Path | None) -> Path | None:
    """Where to build: on the target's own disk, so that putting it in place is a rename; None is the system's temp folder."""
    if target is None and not run.storage.is_local:
        return None
    place = target.absolute().parent if target is not None else run.storage.local_path()
    with storage_errors("creating", str(place)):
        place.mkdir(parents=True, exist_ok=True)
    return place


def _write_model_files(run: RunFolder, folder: Path, dtype: Precision) -> None:
    for name in run.storage.list(MODEL_FOLDER):
        (folder / name).write_bytes(run.storage.read(f"{MODEL_FOLDER}/{name}"))
    config = AutoConfig.from_pretrained(folder)
    config.dtype = DTYPES[dtype]
    config.use_cache = True
    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)


def _write_weights(reader: CheckpointReader, folder: Path, dtype: Precision) -> None:
    shards = plan_shards({name: t.num_elements * 4 for name, t in reader.manifest.tensors.items()}, SHARD_BYTES)
    weight_map: dict[str, str] = {}
    total = 0
    for number, names in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: _tensor(reader, name, dtype) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # safetensors makes its files private, unlike every other file of the export
        weight_map.update(dict.fromkeys(names, file))
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        index: dict[str, Any] = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def plan_shards(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Names in their order, cut into groups of at most `limit` bytes; a larger tensor stands alone."""
    shards: list[list[str]] = [[]]
    room = limit
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= size
    return shards


def _tensor(reader: CheckpointReader, name: str, dtype: Precision) -> torch.Tensor:
    kinds = reader.manifest.tensors[name].kinds
    if MASTER in kinds:
        return torch.from_numpy(reader.read_tensor(name, MASTER)).to(DTYPES[dtype])
    value = torch.from_numpy(reader.read_tensor(name, VALUE))
    if kinds[VALUE] == "BF16":
        value = value.view(torch.bfloat16)
    elif kinds[VALUE] == "BOOL":
        value = value.view(torch.bool)
    return value.to(DTYPES[dtype]) if value.is_floating_point() else value


def _deliver(run: RunFolder, folder: Path, target: Path | None) -> str:
    if target is None and not run.storage.is_local:
        run.storage.remove("export")
        for path in sorted(folder.iterdir()):
            run.storage.write_stream(f"export/{path.name}", [path.read_bytes()])
        return f"{run.storage.url}/export"
    final = target.absolute() if target is not None else run.storage.local_path("export")
    if final.exists():
        # Aside first, away last: at every moment one whole export lies under one of the two names.
        final.rename(folder.with_name("replaced"))
    folder.rename(final)
    return str(final)


def _refuse_foreign_files(target: Path) -> None:
    """An export replaces an export or an empty folder, and nothing else. Raises UserError."""
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"{target} is a file: name a folder for the export")
    names = sorted(path.name for path in target.iterdir())
    foreign = [name for name in names if not _EXPORTED.fullmatch(name)]
    if names and (foreign or "config.json" not in names):
        raise UserError(
            f"{target} holds {len(names)} files or folders that are no export ({', '.join((foreign or names)[:3])}): "
            "an export replaces its folder whole. Name a new folder"
        )
