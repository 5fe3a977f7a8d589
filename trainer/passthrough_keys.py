"""What is known about DeepSpeed 0.19.8's config keys: which may pass through, and why the others may not.

A test compares these tables with the installed version, so that an upgrade shows what is new. The nested tables
hold sections by their dotted path; "" is the top level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, TypeAdapter, ValidationError

DEEPSPEED_VERSION = "0.19.8"


@dataclass(frozen=True)
class Refused:
    """Why a key may not pass through, and what to do instead."""

    reason: str
    remedy: str
    harmless: tuple[Any, ...] = ()
    """Values that change nothing and are let through, such as `false` for a switch that is off by default."""


def _removed(what: str, remedy: str = "remove the key") -> Refused:
    return Refused(f"{what} was removed in DeepSpeed 0.19: it raises or is ignored", remedy)


def _owned(by: str, why: str = "zerofleet sets it") -> Refused:
    return Refused(f"{why}", f"remove it and use {by}")


def _parallel(what: str) -> Refused:
    return Refused(f"{what} is not supported: zerofleet trains data parallel with ZeRO 0 to 3", "remove the key")


def _uncovered(why: str, remedy: str = "remove the key", harmless: tuple[Any, ...] = (False, None)) -> Refused:
    return Refused(f"checkpoint fragments do not cover it: {why}", remedy, harmless)


_BATCH = "the batch rule serves the global batch exactly at any world size and sets DeepSpeed's sizes from it"
_SCALE = "the loss is scaled by the real tokens of the whole step, so DeepSpeed must not scale gradients again"
_TRACKERS = "tracking.wandb.enabled=true (metrics are in the run folder always)"
_MASTERS = "master weights and gradients are fp32 always, in checkpoints too"
_PRECISION = "train.precision (bf16, fp16 or fp32)"
_QUANTISED = "quantised weights are not what the checkpoint's master weights round to"

ALLOWED: dict[str, frozenset[str]] = {
    "": frozenset(
        {"zero_optimization", "bf16", "fp16", "data_types", "communication_data_type", "comms_logger"}
        | {"wall_clock_breakdown", "memory_breakdown", "flops_profiler", "dump_state", "timers", "log_level"}
        | {"disable_python_gc", "vocabulary_size"}
    ),
    "zero_optimization": frozenset(
        {"contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "use_multi_rank_bucket_allreduce"}
        | {"allgather_partitions", "allgather_bucket_size", "overlap_comm", "sub_group_size", "parameter_alignment"}
        | {"ignore_unused_parameters", "memory_efficient_linear", "override_module_apply", "log_trace_cache_warnings"}
        | {"enable_sanity_checks", "leaf_module", "offload_param", "offload_optimizer"}
        | {"stage3_prefetch_bucket_size", "stage3_param_persistence_threshold", "stage3_model_persistence_threshold"}
        | {"stage3_max_live_parameters", "stage3_max_reuse_distance", "stage3_module_granularity_threshold"}
        | {"stage3_use_all_reduce_for_fetch_params", "stage3_allgather_sequential"}
    ),
    "zero_optimization.offload_optimizer": frozenset(
        {"device", "nvme_path", "buffer_count", "pin_memory", "pipeline_read", "pipeline_write", "fast_init"}
    ),
    "zero_optimization.offload_param": frozenset(
        {"device", "nvme_path", "buffer_count", "buffer_size", "max_in_cpu", "pin_memory"}
    ),
    "bf16": frozenset(),
    "fp16": frozenset(
        {"loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis", "consecutive_hysteresis"}
        | {"min_loss_scale", "auto_cast"}
    ),
    "data_types": frozenset({"grad_accum_dtype", "keep_in_fp32_modules"}),
}
"""Keys that pass through. A section that is not listed here passes with all its keys."""

REFUSED: dict[str, dict[str, Refused]] = {
    "": {
        "elasticity": _removed("Elastic training", "remove it: any checkpoint resumes on any world size"),
        "nebula": _removed("Nebula", "remove it: zerofleet writes checkpoints itself"),
        "compression_training": _removed("The compression library"),
        "amp": _removed("Apex amp", f"use {_PRECISION}"),
        "quantize_training": _removed("Mixture of Quantization (MoQ)"),
        "eigenvalue": _removed("Mixture of Quantization (MoQ)"),
        "sparse_attention": _removed("Sparse attention", "use model.attn_implementation"),
        "sparse_gradients": _removed("Compression of sparse gradients"),
        "curriculum_learning": _removed("The legacy top-level curriculum"),
        "progressive_layer_drop": _removed("Progressive layer dropping"),
        "graph_harvesting": _removed("Graph harvesting"),
        "train_batch_size": _owned("train.global_batch_size", _BATCH),
        "train_micro_batch_size_per_gpu": _owned("train.micro_batch_size", _BATCH),
        "gradient_accumulation_steps": _owned("train.global_batch_size and train.micro_batch_size", _BATCH),
        "managed_gradient_accumulation": _owned("train.global_batch_size and train.micro_batch_size", _BATCH),
        "gradient_clipping": _owned("train.gradient_clipping"),
        "optimizer": _owned("train.learning_rate, betas, eps and weight_decay", "zerofleet builds AdamW itself"),
        "scheduler": _owned("train.schedule, warmup_steps and decay_steps", "the schedule is a function of the step"),
        "steps_per_print": _owned("zerofleet logs", "progress is reported by zerofleet"),
        "prescale_gradients": Refused(_SCALE, "remove the key", (False,)),
        "gradient_predivide_factor": Refused(_SCALE, "remove the key", (1, 1.0)),
        "gradient_allreduce_op": Refused(_SCALE, "remove the key", ("mean",)),
        "zero_allow_untested_optimizer": _owned("nothing in its place", "zerofleet chooses the optimizer"),
        "zero_force_ds_cpu_optimizer": _owned("nothing in its place", "zerofleet chooses the optimizer"),
        "bfloat16": _owned(_PRECISION),
        "torch_autocast": _owned(_PRECISION),
        "activation_checkpointing": _owned(
            "train.activation_checkpointing=true", "Hugging Face models ignore DeepSpeed's section"
        ),
        "checkpoint": _owned("the section `checkpoint` of the job", "zerofleet writes checkpoints itself"),
        "datastates_ckpt": _owned("the section `checkpoint` of the job", "zerofleet writes checkpoints itself"),
        "data_efficiency": _owned(
            "the section `data` of the job", "the sample order is a function of seed and position"
        ),
        "dataloader_drop_last": _owned("the section `data` of the job", "zerofleet feeds the data itself"),
        "disable_allgather": Refused("DeepSpeed reads it and does nothing with it", "remove the key"),
        "tensorboard": _owned(_TRACKERS, "trackers hang on the run, not on a rank"),
        "wandb": _owned(_TRACKERS, "trackers hang on the run, not on a rank"),
        "csv_monitor": _owned(_TRACKERS, "trackers hang on the run, not on a rank"),
        "comet": _owned(_TRACKERS, "trackers hang on the run, not on a rank"),
        "autotuning": Refused("it restarts the job with other batch sizes", "remove the key"),
        "aio": _uncovered("it belongs to offload to NVMe; offload to cpu is covered", harmless=()),
        "hybrid_engine": _uncovered("it swaps weights for generation", harmless=()),
        "weight_quantization": _uncovered(_QUANTISED, harmless=()),
        "compile": _uncovered("DeepCompile rewrites the optimizer's partitions", harmless=({"deepcompile": False},)),
        "tensor_parallel": _parallel("tensor parallelism"),
        "pipeline": _parallel("pipeline parallelism"),
        "sequence_parallel_size": _parallel("sequence parallelism"),
        "seq_parallel_communication_data_type": _parallel("sequence parallelism"),
        "expert_parallel": _parallel("expert parallelism"),
        "use_data_before_expert_parallelism": _parallel("expert parallelism"),
    },
    "zero_optimization": {
        "stage": _owned("train.zero_stage"),
        "mics_shard_size": _removed("MiCS"),
        "mics_hierarchical_params_gather": _removed("MiCS"),
        "zeropp_loco_param": _removed("LoCo ZeRO++"),
        "round_robin_gradients": _uncovered("its fragments point at other parameters' data"),
        "zero_hpz_partition_size": _uncovered("hpZ keeps a second partition of the weights", harmless=(1,)),
        "zero_quantized_weights": _uncovered(_QUANTISED),
        "zero_quantized_nontrainable_weights": _uncovered(_QUANTISED),
        "zero_quantized_gradients": _uncovered("gradients would depend on the world size"),
        "zenflow": _uncovered("ZenFlow splits the optimizer state by importance", harmless=(None,)),
        "save_muon_momentum_buffer_in_memory": _uncovered("it belongs to Muon; zerofleet builds AdamW"),
        "cpu_offload": Refused("it is deprecated", "use zero_optimization.offload_optimizer.device=cpu"),
        "cpu_offload_param": Refused("it is deprecated", "use zero_optimization.offload_param.device=cpu"),
        "cpu_offload_use_pin_memory": Refused("it is deprecated", "use pin_memory in the offload sections"),
        "compute_grad_norm": Refused(
            "without the norm a step that was not applied goes unnoticed", "remove the key", (True,)
        ),
        "legacy_stage1": Refused("the old stage 1 is gone", "remove the key", (False,)),
        "elastic_checkpoint": _owned("the section `checkpoint` of the job", "zerofleet writes checkpoints itself"),
        "load_from_fp32_weights": _owned("the section `checkpoint` of the job", "zerofleet loads checkpoints itself"),
        "pipeline_loading_checkpoint": _owned(
            "the section `checkpoint` of the job", "zerofleet loads checkpoints itself"
        ),
        "stage3_gather_16bit_weights_on_model_save": _owned("checkpoint.export", "zerofleet exports the model itself"),
        "stage3_gather_fp16_weights_on_model_save": _owned("checkpoint.export", "zerofleet exports the model itself"),
    },
    "zero_optimization.offload_optimizer": {
        "super_offload": _uncovered("SuperOffload moves optimizer state while it trains"),
        "cpuadam_cores_perc": _uncovered("it belongs to SuperOffload", harmless=(0.8,)),
        "ratio": _uncovered("a part of the state would stay on the device", harmless=(1, 1.0)),
    },
    "bf16": {
        "enabled": _owned(_PRECISION),
        "check_grad_overflow": Refused(
            "without the check a NaN gradient is applied silently", "remove the key", (True,)
        ),
        "bf16_master_weights_and_grads": Refused(_MASTERS, "remove the key", (False,)),
        "bf16_optimizer_states": Refused(
            "zerofleet's AdamW has 16-bit moments", "remove the key and set train.moments_precision=bf16", (False,)
        ),
        "immediate_grad_update": Refused("16-bit gradients would stay beside those in fp32", "remove the key", (True,)),
    },
    "fp16": {
        "enabled": _owned(_PRECISION),
        "fp16_master_weights_and_grads": Refused(_MASTERS, "remove the key", (False,)),
    },
    "data_types": {
        "param_dtype": _owned(_PRECISION),
        "buffer_dtype": Refused(
            "buffers keep the model's own dtype, so that the export computes the same", "remove it"
        ),
    },
}
"""Keys that DeepSpeed knows (or knew) and that may not pass through, by section."""


@dataclass(frozen=True)
class ValueType:
    """What a key takes: DeepSpeed's own pydantic type, so that nothing is refused here that it would take."""

    expected: str
    adapter: TypeAdapter[Any]

    def takes(self, value: Any) -> bool:
        try:
            self.adapter.validate_python(value)
        except ValidationError:
            return False
        return True


def _at_least(least: int) -> ValueType:
    return ValueType(f"a whole number of at least {least}", TypeAdapter(Annotated[int, Field(ge=least)]))


_WHOLE = ValueType("a whole number", TypeAdapter(int))
_BOOLEAN = ValueType("true or false", TypeAdapter(bool))
_SWITCH = ValueType("true or false", TypeAdapter(StrictBool | Literal[0, 1]))
_MAYBE = ValueType("true, false or null", TypeAdapter(bool | None))
_NUMBER = ValueType("a number of at least 0", TypeAdapter(Annotated[float, Field(ge=0)]))
_DEVICE = ValueType("none or cpu", TypeAdapter(Literal["none", "cpu", "nvme"]))


def _typed(section: str, value_type: ValueType, keys: str) -> dict[str, ValueType]:
    return {f"{section}.{key}".lstrip("."): value_type for key in keys.split()}


VALUE_TYPES: dict[str, ValueType] = {
    **_typed("", _SWITCH, "wall_clock_breakdown memory_breakdown dump_state disable_python_gc"),
    **_typed("", _at_least(0), "vocabulary_size"),
    **_typed("zero_optimization", _at_least(1), "reduce_bucket_size"),
    **_typed("zero_optimization", _at_least(0), "allgather_bucket_size sub_group_size stage3_prefetch_bucket_size"),
    **_typed("zero_optimization", _at_least(0), "stage3_param_persistence_threshold stage3_max_live_parameters"),
    **_typed("zero_optimization", _at_least(0), "stage3_model_persistence_threshold stage3_max_reuse_distance"),
    **_typed("zero_optimization", _WHOLE, "stage3_module_granularity_threshold"),
    **_typed("zero_optimization", _MAYBE, "overlap_comm"),
    **_typed("zero_optimization", _BOOLEAN, "contiguous_gradients reduce_scatter use_multi_rank_bucket_allreduce"),
    **_typed("zero_optimization", _BOOLEAN, "allgather_partitions parameter_alignment ignore_unused_parameters"),
    **_typed("zero_optimization", _BOOLEAN, "memory_efficient_linear override_module_apply enable_sanity_checks"),
    **_typed("zero_optimization", _BOOLEAN, "log_trace_cache_warnings stage3_allgather_sequential"),
    **_typed("zero_optimization", _BOOLEAN, "stage3_use_all_reduce_for_fetch_params"),
    **_typed("zero_optimization.offload_optimizer", _DEVICE, "device"),
    **_typed("zero_optimization.offload_optimizer", _at_least(0), "buffer_count"),
    **_typed("zero_optimization.offload_optimizer", _BOOLEAN, "pin_memory pipeline_read pipeline_write fast_init"),
    **_typed("zero_optimization.offload_param", _DEVICE, "device"),
    **_typed("zero_optimization.offload_param", _at_least(0), "buffer_count buffer_size max_in_cpu"),
    **_typed("zero_optimization.offload_param", _BOOLEAN, "pin_memory"),
    **_typed("fp16", _NUMBER, "loss_scale"),
    **_typed("fp16", _WHOLE, "initial_scale_power loss_scale_window hysteresis min_loss_scale"),
    **_typed("fp16", _BOOLEAN, "auto_cast consecutive_hysteresis"),
}
"""What the keys take whose type can be told without DeepSpeed; it is asked itself by deepspeed_check.py."""
