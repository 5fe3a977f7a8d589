"""A checkpoint as a Hugging Face model folder. Reads byte ranges; never holds more than one shard in memory."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch
import xxhash
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig

from zerofleet.trainer.checkpoint.format import DamagedFile
from zerofleet.trainer.checkpoint.fragments import MASTER, VALUE
from zerofleet.trainer.checkpoint.reader import CheckpointReader
from zerofleet.trainer.checkpoint.select import select_checkpoint
from zerofleet.trainer.config import Precision
from zerofleet.trainer.errors import CheckpointUnusable, NotFoundError, StorageError, UserError
from zerofleet.trainer.model import DTYPES
from zerofleet.trainer.run_folder import CheckpointId, RunFolder
from zerofleet.trainer.storage import storage_errors

SHARD_BYTES = 4 * 1024**3
"""Largest weight file of an export."""
MODEL_FOLDER = "model"
"""Folder of the run with the model's config and tokenizer, so that an export needs nothing else."""
MARKER = "zerofleet_export.json"
"""Makes a folder an export of ours: what it was made of, and `files`, the names that the next export may replace."""
_CONFIG = "config.json"
_WORKPLACE = ".zerofleet-export"
"""Folder below the target in which an export is built. What a killed one left there, the next one removes."""


def publish_model_files(run: RunFolder, config: PretrainedConfig, tokenizer_path: Path) -> None:
    """Puts the model's config and tokenizer into the run folder, once. Raises StorageError."""
    if run.storage.exists(f"{MODEL_FOLDER}/{_CONFIG}"):
        return
    config.architectures = [AutoModelForCausalLM._model_mapping[type(config)].__name__]
    files = {path.name: path.read_bytes() for path in sorted(tokenizer_path.iterdir()) if path.is_file()}
    files[_CONFIG] = config.to_json_string(use_diff=True).encode()
    for name in sorted(files, key=lambda name: name == _CONFIG):
        if not run.storage.exists(f"{MODEL_FOLDER}/{name}"):
            run.storage.create(f"{MODEL_FOLDER}/{name}", files[name])


def export(
    run: RunFolder,
    checkpoint: CheckpointId | None,
    target: Path | None,
    dtype: Precision,
    say: Callable[[str], None] = lambda sentence: None,
) -> str:
    """Writes `target` (by default the run's `export/`) and returns its path or URL; loads with `AutoModelForCausalLM`.

    `checkpoint` None takes the newest of which every byte that is read verifies, and `say`s which were skipped and why.
    With fp32 the weights are the master weights themselves. An export that is there already is replaced once the new one is
    whole; a folder with anything else in it is refused. The folder itself stays: it may be a mount, a link's target or a
    shell's working folder. Raises UserError, NotFoundError, CheckpointUnusable, StorageError.
    """
    place = _place(run, target)
    setting = "run.storage" if target is None else "--output"
    with storage_errors("exporting to", str(place), setting, creates=True):
        if target is not None:
            _refuse_foreign_files(place)
        with _workplace(place) as folder:
            if checkpoint is None:
                taken = _write_newest(run, folder, dtype, say)
            else:
                taken = _write_given(run, checkpoint, folder, dtype)
            _write_model_files(run, folder, dtype)
            _write_marker(run, taken, folder, dtype)
            if target is None and not run.storage.is_local:
                return _upload(run, folder)
            if target is not None:
                _refuse_foreign_files(place)  # what was put there meanwhile is as foreign
            _fill(place, folder)
    return str(place if target is None else target.absolute())


# -- where ---------------------------------------------------------------------------------------------------------------
def _place(run: RunFolder, target: Path | None) -> Path:
    """The folder to fill, links followed; for a remote run folder one in the system's temp folder, the same every time."""
    if target is not None:
        return Path(os.path.realpath(target))
    if run.storage.is_local:
        return Path(os.path.realpath(run.storage.local_path("export")))
    name = f"zerofleet-{os.getuid()}-export-{xxhash.xxh3_64_hexdigest(run.storage.url.encode())}"
    return Path(tempfile.gettempdir()) / name


def _refuse_foreign_files(place: Path) -> None:
    """An export goes where an export of ours is, or nothing. Raises UserError."""
    there = next(path for path in (place, *place.parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"{there} is a file: name a folder for the export")
    if there != place:
        return
    ours = _exported_files(place)
    foreign = sorted(path.name for path in place.iterdir() if not _is_ours(path, ours))
    if foreign:
        raise UserError(
            f"{place} holds {len(foreign)} files or folders that are no export ({', '.join(foreign[:3])}): "
            "an export replaces its folder whole. Name a new folder"
        )


def _is_ours(path: Path, exported: set[str]) -> bool:
    return path.is_dir() if path.name == _WORKPLACE else path.name in exported and not path.is_dir()


def _exported_files(place: Path) -> set[str]:
    """Names that the marker of an export lists, its own included; none without a marker that can be read."""
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        return {MARKER, *json.loads((place / MARKER).read_text())["files"]}
    return set()


@contextlib.contextmanager
def _workplace(place: Path) -> Iterator[Path]:
    """An empty folder on the target's own disk, for one export at a time: another one into this target is waited for."""
    was_there = place.exists()
    folder = place / _WORKPLACE
    try:
        with _lock(folder):
            try:
                shutil.rmtree(folder / "export", ignore_errors=True)  # a killed export's
                (folder / "export").mkdir()
                yield folder / "export"
            finally:
                shutil.rmtree(folder, ignore_errors=True)  # the cause of a failure is what the caller must learn
    finally:
        for empty in (folder,) if was_there else (folder, place):
            with contextlib.suppress(OSError):  # gone, or in use by the next export
                empty.rmdir()


def _lock(folder: Path) -> IO[bytes]:
    """Makes `folder` and locks the file `lock` in it; the kernel gives the lock back when the file is closed or its holder
    dies."""
    path = folder / "lock"
    while True:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            lock = path.open("ab")
        except FileNotFoundError:
            continue  # who held the lock has removed the folder
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists() and path.stat().st_ino == os.fstat(lock.fileno()).st_ino:
            return lock
        lock.close()


def _fill(place: Path, folder: Path) -> None:
    """Moves the files in. `config.json` goes first and comes last, so a mixture of two exports never loads; the marker covers
    what is there at every moment, so an export can always be made again."""
    ours = _exported_files(place) - {MARKER}
    for path in sorted(place.iterdir(), key=lambda path: path.name != _CONFIG):
        if path.name in ours and not path.is_dir():
            path.unlink()
    for path in sorted(folder.iterdir(), key=_last_come):
        path.rename(place / path.name)


def _upload(run: RunFolder, folder: Path) -> str:
    run.storage.remove("export")
    for path in sorted(folder.iterdir(), key=_last_come):
        run.storage.write_stream(f"export/{path.name}", [path.read_bytes()])
    return f"{run.storage.url}/export"


def _last_come(path: Path) -> tuple[bool, bool]:
    """Order of an export's files: the marker first, `config.json` last."""
    return path.name == _CONFIG, path.name != MARKER


# -- what ----------------------------------------------------------------------------------------------------------------
def _write_newest(run: RunFolder, folder: Path, dtype: Precision, say: Callable[[str], None]) -> CheckpointId:
    """Writes the weights of the newest checkpoint that can be read. Raises NotFoundError, StorageError when there is none."""
    skipped: dict[CheckpointId, str] = {}

    def skip(found: CheckpointId, reason: str) -> None:
        skipped[found] = reason
        say(f"the checkpoint of step {found.step} (attempt {found.attempt}) was skipped: {reason}")

    while True:
        selection = select_checkpoint(run, frozenset(skipped))
        for found, reason in selection.skipped:
            if found not in skipped:
                skip(found, reason)
        if (checkpoint := selection.checkpoint) is None:
            break
        try:
            _write_weights(CheckpointReader(run.storage, checkpoint), folder, dtype)
        except DamagedFile as error:
            skip(checkpoint, str(error))
            continue
        if skipped:
            say(f"the checkpoint of step {checkpoint.step} (attempt {checkpoint.attempt}) is exported instead")
        return checkpoint
    if not selection.found:
        raise NotFoundError(f"run {run.name!r} has no checkpoint that can be exported")
    reasons = "; ".join(f"step {found.step} (attempt {found.attempt}): {reason}" for found, reason in skipped.items())
    raise StorageError(
        f"no checkpoint of run {run.name!r} can be exported ({reasons or 'their files are gone'}): restore their files"
    )


def _write_given(run: RunFolder, checkpoint: CheckpointId, folder: Path, dtype: Precision) -> CheckpointId:
    try:
        _write_weights(CheckpointReader(run.storage, checkpoint), folder, dtype)
    except DamagedFile as error:
        others = ", ".join(str(step) for step in sorted({c.step for c in run.checkpoints()} - {checkpoint.step}))
        remedy = f"restore its files, or export another step (there are {others})" if others else "restore its files"
        raise CheckpointUnusable(checkpoint.step, checkpoint.attempt, f"{error}: {remedy}") from error
    return checkpoint


def _write_marker(run: RunFolder, checkpoint: CheckpointId, folder: Path, dtype: Precision) -> None:
    facts = {"run": run.name, "step": checkpoint.step, "attempt": checkpoint.attempt, "dtype": dtype}
    files = sorted([MARKER, *(path.name for path in folder.iterdir())])
    (folder / MARKER).write_text(json.dumps({**facts, "files": files}, indent=1) + "\n")


def _write_model_files(run: RunFolder, folder: Path, dtype: Precision) -> None:
    names = run.storage.list(MODEL_FOLDER)
    if not names:
        raise StorageError(
            f"{run.storage.path(MODEL_FOLDER)} is gone, with the model's config and tokenizer: restore its files"
        )
    for name in names:
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
