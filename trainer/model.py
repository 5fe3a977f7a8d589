"""The model: resolved from its config's fields, a folder or a hub id, with initial weights that do not depend on ZeRO.

Each module is drawn in fp32 by the model's own `_init_weights` under a seed from (seed, module name), gathered one at a
time, so any stage and world size starts from the same weights.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers import initialization as hf_initialization

from zerofleet.trainer.batch import module_seed
from zerofleet.trainer.config import ModelConfig, Precision, TrainConfig
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.liger import check_liger, use_liger_kernels
from zerofleet.trainer.sizing import VOCABULARY_MULTIPLE
from zerofleet.trainer.sizing.setup import attention_of

if TYPE_CHECKING:
    from zerofleet.trainer.data.cache import DataCache

DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def resolve_config(model: ModelConfig, tokenizer_size: int) -> PretrainedConfig:
    """The transformers config of the job. Raises UserError for an unknown model type, field or folder."""
    if model.pretrained is not None:
        try:
            return AutoConfig.from_pretrained(model.pretrained)
        except (OSError, ValueError) as error:
            raise UserError(f"model.pretrained={model.pretrained!r} cannot be loaded: {_first_line(error)}") from error
    fields = dict(model.config)
    model_type = fields.pop("model_type")
    fields.setdefault("vocab_size", -(-tokenizer_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE)
    try:
        known = AutoConfig.for_model(model_type)
    except ValueError as error:
        near = _nearest(model_type, CONFIG_MAPPING.keys())
        raise UserError(f"model.config.model_type={model_type!r} is not a model of transformers{near}") from error
    unknown = sorted(key for key in fields if not hasattr(known, key))
    if unknown:
        near = "".join(_nearest(key, vars(known)) for key in unknown)
        raise UserError(
            f"model.config has {', '.join(unknown)}, which {type(known).__name__} does not have{near}: check the spelling"
        )
    try:
        return AutoConfig.for_model(model_type, **fields)
    except Exception as error:
        raise UserError(f"model.config is refused by {type(known).__name__}: {' '.join(str(error).split())}") from error


def _nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` where something is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def check(config: TrainConfig, cache: DataCache) -> PretrainedConfig:
    """What needs transformers and the tokenizer, before any resource is taken. Raises UserError."""
    resolved = resolve_config(config.model, cache.tokenizer_size)
    text = resolved.get_text_config()
    if cache.tokenizer_size > text.vocab_size:
        raise UserError(
            f"the tokenizer has {cache.tokenizer_size} entries and the model's vocabulary only {text.vocab_size}: "
            f"raise model.config.vocab_size to at least {cache.tokenizer_size}, or use the model's own tokenizer"
        )
    positions = getattr(text, "max_position_embeddings", None)
    if positions is not None and config.data.sequence_length > positions:
        raise UserError(
            f"data.sequence_length is {config.data.sequence_length} and the model has {positions} positions: "
            f"lower data.sequence_length, or raise model.config.max_position_embeddings"
        )
    if type(resolved) not in AutoModelForCausalLM._model_mapping:
        raise UserError(
            f"{type(resolved).__name__} has no causal language model in transformers: choose another model_type"
        )
    if config.model.liger_kernels:
        check_liger(resolved)
    model_class = AutoModelForCausalLM._model_mapping[type(resolved)]
    if config.data.document_mask and "position_ids" not in inspect.signature(model_class.forward).parameters:
        raise UserError(
            f"data.document_mask=true: {model_class.__name__} takes no position_ids, by which documents are told apart: choose "
            "another model_type, or set data.document_mask=false"
        )
    return resolved


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@dataclass(frozen=True)
class ModelShape:
    """Sizes for FLOP counts: parameters (all, and without the input embedding unless it is tied), layers, heads, head size."""

    num_parameters: int
    num_matmul_parameters: int
    num_layers: int
    num_heads: int
    head_size: int

    def flops_per_token(self, sequence_length: int, causal: bool = False) -> float:
        """Training FLOPs per token, forward and backward: 6 N + 12 L H Q T (Chowdhery et al. 2022, PaLM, appendix B).

        With `causal`, only the half of the attention scores that a causal mask keeps.
        """
        attention = 12 * self.num_layers * self.num_heads * self.head_size * sequence_length
        return 6 * self.num_matmul_parameters + attention * (0.5 if causal else 1.0)


def build_model(
    config: TrainConfig,
    resolved: PretrainedConfig,
    zero_init: contextlib.AbstractContextManager[Any],
    on_gpu: bool,
) -> PreTrainedModel:
    """The model with its initial or pretrained weights; under ZeRO-3 (`zero_init` is deepspeed.zero.Init) partitioned."""
    attention = attention_of(config, on_gpu)
    if config.model.pretrained is not None:
        # transformers opens zero.Init itself here, because HfDeepSpeedConfig is alive (see engine.py).
        model = _load_pretrained(config.model.pretrained, resolved, attention)
    else:
        with zero_init, hf_initialization.no_init_weights():
            model = AutoModelForCausalLM.from_config(resolved, attn_implementation=attention)
        model.tie_weights()
        draw_initial_weights(model, config.run.seed)
    if config.model.liger_kernels:
        use_liger_kernels(model, on_gpu)
    model.config.use_cache = False
    if config.train.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def _load_pretrained(source: str, resolved: PretrainedConfig, attention: str) -> PreTrainedModel:
    """Raises UserError unless the folder or hub id has every weight of the model: a missing one would stay random."""
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            source, config=resolved, attn_implementation=attention, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise UserError(f"the weights of model.pretrained={source!r} cannot be loaded: {_first_line(error)}") from error
    lacking = sorted({*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])})
    if lacking:
        raise UserError(
            f"model.pretrained={source!r} lacks {len(lacking)} of the model's weights, or has them in another shape "
            f"({', '.join(lacking[:3])}): restore its files, or choose a model whose weights are whole"
        )
    return model


def shape_of(model: PreTrainedModel) -> ModelShape:
    """Sizes of a model, partitioned or not."""
    total = sum(num_elements(parameter) for parameter in model.parameters())
    text = model.config.get_text_config()
    tied = (
        model.get_output_embeddings() is not None
        and model.get_output_embeddings().weight is model.get_input_embeddings().weight
    )
    embedding = 0 if tied else num_elements(model.get_input_embeddings().weight)
    heads = text.num_attention_heads
    return ModelShape(
        num_parameters=total,
        num_matmul_parameters=total - embedding,
        num_layers=text.num_hidden_layers,
        num_heads=heads,
        head_size=getattr(text, "head_dim", None) or text.hidden_size // heads,
    )


def layers_of(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The list of the model's layers. UserError when it has none."""
    num_layers = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == num_layers:
            return module
    raise UserError(f"{type(model).__name__} has no list of {num_layers} layers")


def num_elements(parameter: torch.Tensor) -> int:
    """Elements of the whole parameter, also where ZeRO-3 left only a partition (`ds_numel` is DeepSpeed's name for it)."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def draw_initial_weights(model: PreTrainedModel, seed: int) -> None:
    """Draws every module's own parameters and buffers, in fp32, under its own seed; children before their parents.

    A parent may draw a child's parameters once more (GPT-2 scales its residual projections), so both are at hand. A
    parameter that two modules share (tied embeddings) is drawn by the first that holds it.
    """
    drawn: set[int] = set()
    owners = _init_owners(model)
    with torch.random.fork_rng(devices=[]):
        for name, module in _children_first(model):
            own = list(module.parameters(recurse=False))
            for parameter in own:
                if id(parameter) in drawn:
                    setattr(parameter, "_is_hf_initialized", True)  # noqa: B010 - read by transformers, not declared by torch
            drawn.update(id(parameter) for parameter in own)
            reachable = own + [p for child in module.children() for p in child.parameters(recurse=False)]
            _buffers_to_fp32(module)
            with _gathered(reachable), _in_fp32(reachable):
                torch.default_generator.manual_seed(module_seed(seed, name))  # the CPU's, where they are drawn
                owners[name]._init_weights(module)


def _children_first(module: torch.nn.Module, name: str = "") -> Iterator[tuple[str, torch.nn.Module]]:
    """Modules with their names, in the order in which transformers initialises them."""
    for key, child in module.named_children():
        yield from _children_first(child, f"{name}.{key}" if name else key)
    yield name, module


def _init_owners(model: PreTrainedModel) -> dict[str, PreTrainedModel]:
    """The innermost PreTrainedModel around each module: a composite model's parts have `_init_weights` of their own."""
    owners: dict[str, PreTrainedModel] = {}
    for name, module in model.named_modules():
        parent = owners.get(name.rpartition(".")[0], model)
        owners[name] = module if isinstance(module, PreTrainedModel) else parent
    return owners


def _gathered(parameters: list[torch.nn.Parameter]) -> contextlib.AbstractContextManager[Any]:
    partitioned = [p for p in parameters if hasattr(p, "ds_tensor")]
    if not partitioned:
        return contextlib.nullcontext()
    import deepspeed

    gathered: contextlib.AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0)
    return gathered


def _buffers_to_fp32(module: torch.nn.Module) -> None:
    """zero.Init makes buffers in the 16-bit dtype too; rotary frequencies lose their positions there."""
    for key, buffer in module.named_buffers(recurse=False):
        if buffer.is_floating_point() and buffer.dtype != torch.float32:
            module._buffers[key] = buffer.float()


@contextlib.contextmanager
def _in_fp32(parameters: list[torch.nn.Parameter]) -> Iterator[None]:
    """Lets `_init_weights` write fp32 values on the CPU, then rounds them to the parameter's dtype on its device: the same
    draw in every precision, and whether or not ZeRO-3 gathers on a GPU, whose generator draws other numbers."""
    elsewhere = (p for p in parameters if p.dtype != torch.float32 or p.device.type != "cpu")
    low = [(parameter, parameter.data) for parameter in elsewhere]
    for parameter, data in low:
        parameter.data = data.to(device="cpu", dtype=torch.float32)
    try:
        yield
    finally:
        for parameter, data in low:
            data.copy_(parameter.data)
            parameter.data = data


def config_digest(fields: dict[str, Any]) -> str:
    """xxh3-128 of a resolved model config without what does not change the model."""
    transient = {
        "transformers_version",
        "dtype",
        "torch_dtype",
        "_name_or_path",
        "use_cache",
        "_attn_implementation",
        "architectures",
    }
    kept = {key: value for key, value in fields.items() if key not in transient}
    return xxhash.xxh3_128_hexdigest(json.dumps(kept, sort_keys=True, default=str).encode())
