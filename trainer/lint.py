"""Static checks of a job before anything is taken: DeepSpeed's pass-through section, batch, evaluation, sizes.

Light: neither torch nor deepspeed nor transformers is imported. What needs those is checked by the driver (model.py).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from zerofleet.trainer.batch import BatchPlan
from zerofleet.trainer.config import DataConfig, TrainConfig
from zerofleet.trainer.data.weights import turns_of
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.passthrough_keys import ALLOWED, DEEPSPEED_VERSION, REFUSED, VALUE_TYPES, Refused
from zerofleet.trainer.sizing.setup import LARGEST_BETA2

_POSITION_KEYS = ("max_position_embeddings", "n_positions", "n_ctx")
"""How transformers' configs name the number of positions."""

_FREE = frozenset({"data_types.keep_in_fp32_modules"})
"""Where `auto` is a value of DeepSpeed's own."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (`error`: the job must not start) or wasteful (`warning`)."""

    level: Literal["error", "warning"]
    where: str
    """The dotted path of the setting."""
    message: str
    """The reason, with numbers, and the remedy."""

    def __str__(self) -> str:
        return f"{self.level}: {self.where}: {self.message}"


def lint(config: TrainConfig, world_size: int) -> list[Finding]:
    """Everything that can be said about the job on `world_size` ranks without torch, errors first."""
    findings = [
        *_passthrough(config.deepspeed),
        *_dtypes(config),
        *_offload(config),
        *_moments(config),
        *_compile(config),
        *_blocks(config, world_size),
        *_profile(config, world_size),
        *_heldout(config),
        *_mixture(config.data),
        *_model_sizes(config),
        *_init_from(config.run.init_from),
    ]
    return sorted(findings, key=lambda finding: finding.level)


def _error(where: str, message: str) -> Finding:
    return Finding("error", where, message)


def _warning(where: str, message: str) -> Finding:
    return Finding("warning", where, message)


def _init_from(text: str | None) -> Iterator[Finding]:
    name, at, step = (text or "").rpartition("@")
    if at and "/" not in step and not (name and step.isdecimal()):  # an @ within a URL is none
        yield _error(
            "run.init_from",
            f"{text!r} is not RUN@STEP: write {name or 'RUN'}@1000, or {name or 'RUN'} alone for its newest step",
        )


# -- DeepSpeed's section -------------------------------------------------------------------------------------------
def _passthrough(section: dict[str, Any], path: str = "") -> Iterator[Finding]:
    """Walks DeepSpeed's config; every key is allowed, refused with its reason, or unknown."""
    allowed, refused = ALLOWED.get(path), REFUSED.get(path, {})
    for key, value in section.items():
        below = f"{path}.{key}" if path else str(key)
        where = f"deepspeed.{below}"
        if key in refused:
            yield from _refusal(where, key, value, refused[key])
        elif allowed is not None and key not in allowed:
            yield _error(where, _unknown(path, str(key)))
        elif below in ALLOWED and not isinstance(value, dict):
            yield _error(where, f"it is {value!r}, but DeepSpeed {DEEPSPEED_VERSION} takes a section of keys here")
        elif value == "auto" and below not in _FREE:
            yield _error(
                where, "`auto` means something to the Hugging Face Trainer only: give a number or remove the key"
            )
        elif below in VALUE_TYPES and not VALUE_TYPES[below].takes(value):
            yield _error(
                where,
                f"it is {value!r}, but DeepSpeed {DEEPSPEED_VERSION} takes {VALUE_TYPES[below].expected} here: "
                "give one, or remove the key to have DeepSpeed's default",
            )
        elif isinstance(value, dict):
            yield from _passthrough(value, below)


def _refusal(where: str, key: str, value: Any, refused: Refused) -> Iterator[Finding]:
    if any(value == harmless and type(value) is type(harmless) for harmless in refused.harmless):
        return
    kind = str(value.get("type", "")).lower() if key == "optimizer" and isinstance(value, dict) else ""
    if kind.startswith(("onebit", "zeroone")):
        yield _error(where, f"{value['type']} was removed in DeepSpeed 0.19: {refused.remedy}")
    else:
        yield _error(where, f"{refused.reason}: {refused.remedy}")


def _unknown(path: str, key: str) -> str:
    """Names the nearest key of the section, or the section where the key belongs."""
    section = path or "the top level"
    known = ALLOWED[path] | REFUSED.get(path, {}).keys()
    elsewhere = [other or "the top level" for other, keys in ALLOWED.items() if key in keys]
    if elsewhere:
        return f"DeepSpeed {DEEPSPEED_VERSION} has no such key ({section}): it belongs in {elsewhere[0]}"
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    nearest = f"the nearest is {close[0]}" if close else f"it has {', '.join(sorted(ALLOWED[path]))}"
    return f"DeepSpeed {DEEPSPEED_VERSION} has no such key ({section}): {nearest}"


def _dtypes(config: TrainConfig) -> Iterator[Finding]:
    """Gradients accumulate and travel in fp32; a section for another precision would be silent."""
    train, section = config.train, config.deepspeed
    communication = section.get("communication_data_type", "fp32")
    if communication != "fp32":
        yield _error(
            "deepspeed.communication_data_type",
            f"{communication} would make the gradient depend on the world size: remove it (fp32 is used)",
        )
    accumulation = _sub(section, "data_types").get("grad_accum_dtype")
    possible = train.precision if train.zero_stage == 0 else "fp32"
    if accumulation not in (None, possible):
        yield _error(
            "deepspeed.data_types.grad_accum_dtype",
            f"{accumulation} cannot be had with train.zero_stage={train.zero_stage} and train.precision={train.precision}: "
            f"remove it ({possible} is used" + ("" if train.zero_stage else "; stages 1 to 3 accumulate in fp32") + ")",
        )
    for precision in ("bf16", "fp16"):
        if precision in section and train.precision != precision:
            yield _warning(
                f"deepspeed.{precision}",
                f"it has no effect with train.precision={train.precision}: remove it, or set train.precision={precision}",
            )


def _offload(config: TrainConfig) -> Iterator[Finding]:
    """Offload needs a ZeRO stage that has something to offload."""
    zero, stage = _sub(config.deepspeed, "zero_optimization"), config.train.zero_stage
    for key, lowest in (("offload_param", 3), ("offload_optimizer", 1)):
        device = _sub(zero, key).get("device", "none")
        if device != "none" and stage < lowest:
            yield _error(
                f"deepspeed.zero_optimization.{key}",
                f"offload to {device} needs train.zero_stage >= {lowest}, it is {stage}: raise it, or remove the section",
            )
        if device == "nvme":
            yield _error(
                f"deepspeed.zero_optimization.{key}.device",
                "checkpoint fragments do not cover what lies on NVMe: use `cpu`, or more ranks (a partition gets smaller)",
            )


def _moments(config: TrainConfig) -> Iterator[Finding]:
    """16-bit moments have an optimizer of their own, and no room for small changes."""
    train = config.train
    if train.moments_precision == "fp32":
        return
    if _sub(_sub(config.deepspeed, "zero_optimization"), "offload_optimizer").get("device", "none") != "none":
        yield _error(
            "train.moments_precision",
            "bf16 moments cannot be offloaded (DeepSpeed's CPUAdam keeps them in the dtype of the masters): set it to fp32, or remove "
            "deepspeed.zero_optimization.offload_optimizer",
        )
    if train.betas[1] > LARGEST_BETA2:
        yield _error(
            "train.betas",
            f"the second, {train.betas[1]}, moves the second moment by less than bf16 can tell in most steps, so that it would stand still: "
            f"at most {LARGEST_BETA2} with train.moments_precision=bf16, or fp32 moments",
        )


def _compile(config: TrainConfig) -> Iterator[Finding]:
    """ZeRO-3 gathers and lets go of weights by hooks within every layer."""
    if config.train.compile and config.train.zero_stage == 3:
        yield _error(
            "train.compile",
            "with train.zero_stage=3 a layer's weights come and go by hooks, at each of which the compiled layer would be cut: set it to false, "
            "or take train.zero_stage=2 where the weights fit",
        )


def _sub(section: dict[str, Any], key: str) -> dict[str, Any]:
    value = section.get(key)
    return value if isinstance(value, dict) else {}


# -- the job -------------------------------------------------------------------------------------------------------
def _blocks(config: TrainConfig, world_size: int) -> Iterator[Finding]:
    """Ranks or sequences that would compute with weight 0."""
    train = config.train
    plan = BatchPlan.of(train.global_batch_size, train.micro_batch_size, world_size)
    if train.micro_batch_size > train.global_batch_size:
        yield _warning(
            "train.micro_batch_size",
            f"{train.micro_batch_size} exceeds train.global_batch_size={train.global_batch_size}: "
            f"{plan.num_padded_sequences} of {train.micro_batch_size} sequences are padding. Lower it",
        )
    if world_size > plan.num_blocks:
        fitting = max(1, train.global_batch_size // world_size)
        remedy = (
            f"set train.micro_batch_size={fitting} or use at most {plan.num_blocks} ranks"
            if fitting < train.micro_batch_size
            else f"use at most {plan.num_blocks} ranks or a larger train.global_batch_size"
        )
        yield _warning(
            "train.micro_batch_size",
            f"a global batch of {train.global_batch_size} in blocks of {train.micro_batch_size} is {plan.num_blocks} blocks "
            f"for {world_size} ranks: {world_size - plan.num_blocks} ranks compute with weight 0. To mend it, {remedy}",
        )


def _profile(config: TrainConfig, world_size: int) -> Iterator[Finding]:
    """Steps and ranks that there are."""
    train, profile = config.train, config.train.profile
    if profile is None:
        return
    if profile.steps[1] > train.steps:
        first, last = profile.steps
        yield _error(
            "train.profile.steps",
            f"the run has {train.steps} steps, so that {first} to {last} cannot be traced: lower them",
        )
    if max(profile.ranks) >= world_size:
        yield _error(
            "train.profile.ranks",
            f"there is no rank {max(profile.ranks)}: with {world_size} ranks the last is {world_size - 1}",
        )


def _heldout(config: TrainConfig) -> Iterator[Finding]:
    """Evaluation needs held-out documents."""
    train = config.train
    if config.data.heldout_fraction > 0:
        return
    asked = {"eval_interval_steps": train.eval_interval_steps, "eval_sequences": train.eval_sequences}
    wanted = [f"train.{key}={value}" for key, value in asked.items() if value]
    if wanted:
        yield _error(
            "data.heldout_fraction",
            f"it is 0, so there is nothing to evaluate on, but {' and '.join(wanted)}: raise it (0.01 is the default) or "
            "remove these",
        )
    else:
        yield _warning("data.heldout_fraction", "it is 0: no held-out loss will be reported")


def _mixture(data: DataConfig) -> Iterator[Finding]:
    """Weights that have no schedule, and settings that would be ignored."""
    try:
        turns_of(data.weights)
    except UserError as error:
        yield _error("data.sources", str(error))
    for key in ("format", "text_field"):
        value, default = getattr(data, key), DataConfig.model_fields[key].default
        if data.sources and value != default:
            first = next(iter(data.sources))
            yield _error(
                f"data.{key}",
                f"it is {value!r}, and says nothing about the sources of a mixture: write it into each source that it is meant for "
                f"(data.sources.{first}.{key}={value}), and remove it here",
            )


def _model_sizes(config: TrainConfig) -> Iterator[Finding]:
    """Positions and vocabulary, as far as the recipe gives them."""
    fields, data = config.model.config, config.data
    for key in _POSITION_KEYS:
        positions = fields.get(key)
        if isinstance(positions, int) and data.sequence_length > positions:
            yield _error(
                "data.sequence_length",
                f"it is {data.sequence_length} and the model has {positions} positions: lower data.sequence_length, or "
                f"raise model.config.{key}",
            )
    vocabulary = fields.get("vocab_size")
    if data.tokenizer is None and isinstance(vocabulary, int) and data.tokenizer_vocab_size > vocabulary:
        yield _error(
            "data.tokenizer_vocab_size",
            f"the tokenizer is trained to {data.tokenizer_vocab_size} entries and the model's vocabulary has {vocabulary}: "
            f"lower it, or raise model.config.vocab_size to at least {data.tokenizer_vocab_size}",
        )
