"""`zerofleet import`: the weights of a checkpoint that DeepSpeed or the Hugging Face Trainer has written, as a model folder in fp32.

Stages 1 to 3: the fp32 masters, by DeepSpeed's own `zero_to_fp32`. Stage 0 in 16 bits keeps them in the optimizer's state without names; each
is known by its shape and by rounding to the very 16-bit weight that lies beside it. DeepSpeed's files are pickles: reading them runs what they say.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from zerofleet.trainer.checkpoint.export import SHARD_BYTES, plan_shards
from zerofleet.trainer.errors import NotFoundError, UserError

Weights = dict[str, torch.Tensor]
_STEP = re.compile(r"global_step(\d+)")
_ONE_RANK = "mp_rank_00_model_states.pt"
_CONFIG = "config.json"
_BESIDE = ("config.json", "generation_config.json", "chat_template.jinja", "vocab.json", "merges.txt", "vocab.txt")
"""Of a model folder, what is taken along besides weights and tokenizer*, special_tokens_map*, added_tokens*."""


@dataclass(frozen=True)
class Source:
    """Where a checkpoint's weights and its model's config are."""

    zero: Path | None
    """The folder of one step that DeepSpeed has written."""
    folder: Path
    """Weights where there is no `zero`."""
    config: Path
    """The folder with the model's config.json."""


def find(path: Path, config: Path | None) -> Source:
    """`path` is a folder that DeepSpeed saved into (`latest`, `global_step*`), one step of it, or a Trainer's checkpoint-N with or without such a
    step inside. Raises NotFoundError, UserError."""
    if not path.is_dir():
        raise NotFoundError(f"{path} is no folder: name a checkpoint's folder")
    zero = _step_folder(path)
    if zero is None and not _weight_files(path):
        found = sorted(child.name for child in path.iterdir() if re.fullmatch(r"checkpoint-\d+", child.name))
        hint = f": name one of {', '.join(found[-4:])}" if found else ""
        raise UserError(f"{path} holds neither a step of DeepSpeed (global_step*) nor a model's weights{hint}")
    for folder in (config, path, path.parent):
        if folder is not None and (folder / _CONFIG).is_file():
            return Source(zero, path, folder)
    raise UserError(f"there is no config.json in {config or path}: name the folder that has the model's with --config")


def _step_folder(path: Path) -> Path | None:
    if any(path.glob("*_model_states.pt")):
        return path
    latest = path / "latest"
    if latest.is_file():
        named = path / latest.read_text().strip()
        if not named.is_dir():
            raise UserError(f"{latest} names {named.name}, which is not there: name the step's own folder")
        return named
    steps = sorted((int(m[1]), child) for child in path.iterdir() if (m := _STEP.fullmatch(child.name)))
    return steps[-1][1] if steps else None


def _weight_files(path: Path) -> list[Path]:
    return sorted([*path.glob("model*.safetensors"), *path.glob("pytorch_model*.bin")])


def import_model(source: Source, target: Path, say: Callable[[str], None]) -> None:
    """Writes `target`, a new folder that `model.pretrained` takes. Raises UserError when weights are missing, are of another model or cannot be
    read."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is there already: name a new folder")
    weights, what = _weights_of(source)
    weights = _checked(weights, source.config)
    say(f"{len(weights)} tensors, {sum(t.numel() for t in weights.values()):,} elements: {what}")
    target.parent.mkdir(parents=True, exist_ok=True)
    building = target.with_name(f".{target.name}.importing")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    _write(weights, building)
    _write_beside(source, building)
    if target.exists():
        target.rmdir()
    building.rename(target)


def _weights_of(source: Source) -> tuple[Weights, str]:
    """In fp32, and in words what they are."""
    if source.zero is None:
        dtypes, weights = set(), {}
        for file in _weight_files(source.folder):
            try:
                part = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
            except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
                raise UserError(f"{file} cannot be read ({_first_line(error)}): restore it") from error
            dtypes |= {str(tensor.dtype).removeprefix("torch.") for tensor in part.values()}
            weights.update({name: tensor.float() for name, tensor in part.items() if tensor.is_floating_point()})
        return (
            weights,
            f"the {' and '.join(sorted(dtypes))} weights of {source.folder.name}, as there are no fp32 masters",
        )
    parallel = sorted(source.zero.glob("mp_rank_*_model_states.pt"))
    if len(parallel) > 1:
        raise UserError(
            f"{source.zero} was written with tensor parallelism of {len(parallel)}: only data parallelism and ZeRO can be imported"
        )
    if any(source.zero.glob("*_optim_states.pt")):
        return _by_zero_to_fp32(source.zero), f"the fp32 masters of {source.zero.name} (ZeRO)"
    return _of_stage_0(source.zero), f"the fp32 weights of {source.zero.name} (stage 0)"


def _by_zero_to_fp32(step: Path) -> Weights:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint  # takes seconds to import

    try:
        found = get_fp32_state_dict_from_zero_checkpoint(str(step.parent), tag=step.name)
    except Exception as error:  # it raises whatever a damaged pickle makes of it
        raise UserError(
            f"DeepSpeed's zero_to_fp32 cannot read {step} ({_first_line(error)}): restore its files"
        ) from error
    return {name: tensor.float() for name, tensor in found.items()}


def _of_stage_0(step: Path) -> Weights:
    """Raises UserError when a 16-bit weight has no master."""
    file = step / _ONE_RANK
    try:
        state = torch.load(file, map_location="cpu", weights_only=False)
        module: Weights = state["module"]
    except Exception as error:  # a damaged pickle raises anything
        raise UserError(f"{file} cannot be read ({_first_line(error)}): restore it") from error
    if all(t.dtype == torch.float32 for t in module.values() if t.is_floating_point()):
        return dict(module)
    masters = list(_masters(state.get("optimizer") or {}))
    weights: Weights = {}
    for name, weight in module.items():
        if not weight.is_floating_point():
            continue
        same = next(
            (n for n, m in enumerate(masters) if m.shape == weight.shape and torch.equal(m.to(weight.dtype), weight)),
            None,
        )
        tied = next((n for n, t in module.items() if n in weights and t.data_ptr() == weight.data_ptr()), None)
        if tied is not None:
            weights[name] = weights[tied]
        elif same is not None:
            weights[name] = masters.pop(same)
        else:
            raise UserError(f"{file} has no fp32 master of {name}: was it saved without its optimizer?")
    return weights


def _masters(optimizer: dict[str, Any]) -> Iterator[torch.Tensor]:
    """Of DeepSpeed's optimizers that wrap another one for 16 bits."""
    for group in optimizer.get("fp32_groups", ()):
        yield from group if isinstance(group, list | tuple) else [group]


def _checked(weights: Weights, config: Path) -> Weights:
    """Those of the model that the config describes, each in its shape; tied ones once."""
    if weights and all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    try:
        resolved = AutoConfig.from_pretrained(config)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(resolved)
    except (OSError, ValueError) as error:
        raise UserError(f"{config / _CONFIG} describes no causal language model ({_first_line(error)})") from error
    wanted = dict(model.named_parameters())
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    missing = sorted(wanted.keys() - weights.keys())
    unknown = sorted(weights.keys() - every - {name for name, _ in model.named_buffers()})
    other = sorted(n for n in wanted.keys() & weights.keys() if wanted[n].shape != weights[n].shape)
    for what, names in (("lacks", missing), ("has in another shape", other), ("has besides", unknown)):
        if names:
            told = ", ".join(names[:3])
            raise UserError(
                f"the checkpoint is of another model than {config / _CONFIG}: it {what} {len(names)} weights ({told}, ...)"
            )
    return {name: weights[name] for name in wanted}


def _write(weights: Weights, folder: Path) -> None:
    shards = plan_shards({name: tensor.numel() * 4 for name, tensor in weights.items()}, SHARD_BYTES)
    where: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: weights[name].contiguous() for name in names}, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # safetensors makes its files private
        where.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(t.numel() * 4 for t in weights.values())}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def _write_beside(source: Source, folder: Path) -> None:
    """Config and tokenizer. The config says fp32 from now on."""
    for place in dict.fromkeys((source.config, source.folder)):
        for path in sorted(place.iterdir()):
            is_wanted = path.name in _BESIDE or path.name.startswith(
                ("tokenizer", "special_tokens_map", "added_tokens")
            )
            if path.is_file() and is_wanted and not (folder / path.name).exists():
                shutil.copy(path, folder / path.name)
    fields = json.loads((folder / _CONFIG).read_text())
    fields.pop("torch_dtype", None)
    (folder / _CONFIG).write_text(json.dumps({**fields, "dtype": "float32"}, indent=2) + "\n")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
