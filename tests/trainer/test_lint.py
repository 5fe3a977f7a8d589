import pytest

from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.data.weights import turns_of
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.lint import Finding, lint


def config(deepspeed: dict | None = None, model: dict | None = None, data: dict | None = None, **train) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "model": {"config": {"model_type": "llama", **(model or {})}},
            "data": {"files": ["python-stdlib"], "sequence_length": 64, **(data or {})},
            "train": {"steps": 10, "global_batch_size": 8, "micro_batch_size": 2, **train},
            "deepspeed": deepspeed or {},
        }
    )


def findings(world_size: int = 2, **parts) -> list[Finding]:
    return lint(config(**parts), world_size)


def only(found: list[Finding], level: str) -> Finding:
    assert [finding.level for finding in found] == [level], found
    return found[0]


def test_a_plain_job_has_no_findings():
    assert findings() == []


@pytest.mark.parametrize(
    ("profile", "where", "what"),
    [
        ({"steps": [9, 11]}, "train.profile.steps", "the run has 10 steps"),
        ({"steps": [1, 2], "ranks": [0, 2]}, "train.profile.ranks", "there is no rank 2: with 2 ranks the last is 1"),
    ],
)
def test_only_what_there_is_can_be_traced(profile, where, what):
    found = only(findings(profile=profile), "error")
    assert found.where == where and what in found.message
    assert findings(profile={"steps": [1, 10], "ranks": [0, 1]}) == []


def test_a_micro_batch_is_not_halved_below_what_it_is():
    with pytest.raises(ValueError, match=r"min_micro_batch_size \(4\) exceeds micro_batch_size \(2\)"):
        config(min_micro_batch_size=4)
    assert findings(min_micro_batch_size=2) == []


def test_what_passes_through():
    section = {
        "zero_optimization": {
            "reduce_bucket_size": 5e7,
            "overlap_comm": True,
            "leaf_module": {"names": ["experts"]},
            "offload_optimizer": {"device": "cpu", "pin_memory": False},
            "round_robin_gradients": False,
            "zero_hpz_partition_size": 1,
        },
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32", "keep_in_fp32_modules": "auto"},
        "bf16": {"immediate_grad_update": True},
        "flops_profiler": {"enabled": True, "anything": "deeper"},
        "wall_clock_breakdown": True,
    }
    assert findings(deepspeed=section) == []


@pytest.mark.parametrize(
    ("section", "where", "part"),
    [
        ({"elasticity": {}}, "elasticity", "removed in DeepSpeed 0.19"),
        ({"nebula": {"enabled": False}}, "nebula", "removed"),
        ({"compression_training": {}}, "compression_training", "removed"),
        ({"amp": {"enabled": True}}, "amp", "train.precision"),
        ({"quantize_training": {}}, "quantize_training", "MoQ"),
        ({"sparse_attention": {}}, "sparse_attention", "removed"),
        ({"curriculum_learning": {}}, "curriculum_learning", "removed"),
        ({"optimizer": {"type": "OneBitAdam"}}, "optimizer", "OneBitAdam was removed"),
        ({"optimizer": {"type": "ZeroOneAdam"}}, "optimizer", "ZeroOneAdam was removed"),
        ({"zero_optimization": {"mics_shard_size": 2}}, "zero_optimization.mics_shard_size", "MiCS"),
        ({"zero_optimization": {"zeropp_loco_param": {}}}, "zero_optimization.zeropp_loco_param", "LoCo"),
        ({"train_batch_size": 8}, "train_batch_size", "train.global_batch_size"),
        ({"train_micro_batch_size_per_gpu": 8}, "train_micro_batch_size_per_gpu", "train.micro_batch_size"),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps", "train.micro_batch_size"),
        ({"zero_optimization": {"stage": 2}}, "zero_optimization.stage", "train.zero_stage"),
        ({"bf16": {"enabled": True}}, "bf16.enabled", "train.precision"),
        ({"gradient_clipping": 1.0}, "gradient_clipping", "train.gradient_clipping"),
        ({"optimizer": {"type": "Adam"}}, "optimizer", "train.learning_rate"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler", "train.schedule"),
        ({"prescale_gradients": True}, "prescale_gradients", "scaled"),
        ({"gradient_predivide_factor": 2.0}, "gradient_predivide_factor", "scaled"),
        ({"steps_per_print": 10}, "steps_per_print", "progress"),
        ({"wandb": {"enabled": True}}, "wandb", "tracking.wandb.enabled"),
        ({"activation_checkpointing": {}}, "activation_checkpointing", "train.activation_checkpointing"),
        ({"communication_data_type": "bf16"}, "communication_data_type", "depend on the world size"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "data_types.grad_accum_dtype", "fp32"),
        ({"bf16": {"check_grad_overflow": False}}, "bf16.check_grad_overflow", "NaN"),
        ({"bf16": {"bf16_master_weights_and_grads": True}}, "bf16.bf16_master_weights_and_grads", "fp32"),
        (
            {"zero_optimization": {"round_robin_gradients": True}},
            "zero_optimization.round_robin_gradients",
            "fragments",
        ),
        ({"zero_optimization": {"zero_hpz_partition_size": 8}}, "zero_optimization.zero_hpz_partition_size", "hpZ"),
        (
            {"zero_optimization": {"zero_quantized_weights": True}},
            "zero_optimization.zero_quantized_weights",
            "fragments",
        ),
        ({"zero_optimization": {"zenflow": {"topk_ratio": 0.1}}}, "zero_optimization.zenflow", "ZenFlow"),
        ({"compile": {"deepcompile": True}}, "compile", "DeepCompile"),
        ({"tensor_parallel": {"autotp_size": 2}}, "tensor_parallel", "data parallel"),
        ({"pipeline": {}}, "pipeline", "data parallel"),
        ({"sequence_parallel_size": 2}, "sequence_parallel_size", "data parallel"),
        ({"expert_parallel": {"enabled": True}}, "expert_parallel", "data parallel"),
        ({"zero_optimization": {"reduce_bucket_size": "auto"}}, "zero_optimization.reduce_bucket_size", "Trainer"),
        ({"zero_optimization": True}, "zero_optimization", "takes a section"),
    ],
)
def test_what_is_refused(section, where, part):
    finding = only(findings(deepspeed=section), "error")
    assert finding.where == f"deepspeed.{where}"
    assert part in finding.message


@pytest.mark.parametrize(
    ("section", "part"),
    [
        ({"zero_optimisation": {}}, "the nearest is zero_optimization"),
        ({"zero_optimization": {"reduce_buckt_size": 1}}, "the nearest is reduce_bucket_size"),
        ({"overlap_comm": True}, "it belongs in zero_optimization"),
        ({"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}}, "the nearest is device"),
        ({"fp16": {"xyz": 1}}, "it has auto_cast"),
    ],
)
def test_unknown_keys_name_the_nearest_or_the_right_section(section, part):
    errors = [finding for finding in findings(deepspeed=section) if finding.level == "error"]
    assert len(errors) == 1 and part in errors[0].message


def test_fp16_loss_scaling_passes_but_its_switch_does_not():
    section = {"fp16": {"initial_scale_power": 12, "loss_scale_window": 100, "hysteresis": 2, "min_loss_scale": 1}}
    assert findings(deepspeed=section, precision="fp16") == []
    assert (
        only(findings(deepspeed={"fp16": {"enabled": True}}, precision="fp16"), "error").where
        == "deepspeed.fp16.enabled"
    )


def test_a_section_of_another_precision_is_said():
    finding = only(findings(deepspeed={"fp16": {"loss_scale": 0}}), "warning")
    assert "no effect with train.precision=bf16" in finding.message


def test_stage_0_accumulates_in_its_own_dtype():
    section = {"data_types": {"grad_accum_dtype": "fp32"}}
    assert "train.zero_stage=0" in only(findings(deepspeed=section, zero_stage=0), "error").message
    assert findings(deepspeed=section, zero_stage=0, precision="fp32") == []


@pytest.mark.parametrize(("key", "stage"), [("offload_param", 2), ("offload_optimizer", 0)])
def test_offload_needs_a_stage_that_has_something_to_offload(key, stage):
    section = {"zero_optimization": {key: {"device": "cpu"}}}
    assert f"it is {stage}" in only(findings(deepspeed=section, zero_stage=stage), "error").message
    assert findings(deepspeed=section, zero_stage=stage + 1) == []


def test_offload_to_nvme_has_no_checkpoint():
    section = {"zero_optimization": {"offload_optimizer": {"device": "nvme", "nvme_path": "/nvme"}}}
    assert "do not cover what lies on NVMe" in only(findings(deepspeed=section), "error").message


@pytest.mark.parametrize(
    ("settings", "where", "says"),
    [
        ({"betas": [0.9, 0.999]}, "train.betas", "at most 0.98"),
        (
            {"deepspeed": {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}},
            "train.moments_precision",
            "cannot be offloaded",
        ),
    ],
)
def test_16_bit_moments_have_their_limits(settings, where, says):
    finding = only(findings(**settings, moments_precision="bf16"), "error")
    assert finding.where == where and says in finding.message
    assert findings(**settings) == [] and findings(moments_precision="bf16") == []


def test_layers_are_not_compiled_where_their_weights_come_and_go():
    assert only(findings(compile=True, zero_stage=3), "error").where == "train.compile"
    assert findings(compile=True, zero_stage=2) == []


def test_more_ranks_than_blocks():
    finding = only(findings(world_size=6), "warning")
    assert "8 in blocks of 2 is 4 blocks for 6 ranks: 2 ranks compute with weight 0" in finding.message
    assert "train.micro_batch_size=1" in finding.message
    assert findings(world_size=6, micro_batch_size=1) == []
    assert "at most 8 ranks" in only(findings(world_size=9, micro_batch_size=1), "warning").message


def test_a_block_larger_than_the_batch():
    found = findings(world_size=1, micro_batch_size=10)
    assert "2 of 10 sequences are padding" in only(found, "warning").message


def test_evaluation_needs_heldout_documents():
    none = {"heldout_fraction": 0}
    assert "no held-out loss" in only(findings(data=none), "warning").message
    assert "train.eval_interval_steps=5" in only(findings(data=none, eval_interval_steps=5), "error").message


@pytest.mark.parametrize("key", ["max_position_embeddings", "n_positions"])
def test_sequences_longer_than_the_positions(key):
    finding = only(findings(model={key: 63}), "error")
    assert "it is 64 and the model has 63 positions" in finding.message and f"model.config.{key}" in finding.message
    assert findings(model={key: 64}) == []


def test_a_vocabulary_smaller_than_the_trained_tokenizer():
    finding = only(findings(model={"vocab_size": 8191}), "error")
    assert "8192 entries and the model's vocabulary has 8191" in finding.message
    assert findings(model={"vocab_size": 8191}, data={"tokenizer": "some/tokenizer"}) == []


def test_errors_come_first():
    levels = [finding.level for finding in findings(world_size=9, deepspeed={"train_batch_size": 1})]
    assert levels == ["error", "warning"]


@pytest.mark.parametrize(
    ("section", "where", "part"),
    [
        ({"zero_optimization": {"reduce_bucket_size": "big"}}, "zero_optimization.reduce_bucket_size", "'big'"),
        ({"zero_optimization": {"reduce_bucket_size": 0}}, "zero_optimization.reduce_bucket_size", "at least 1"),
        ({"zero_optimization": {"sub_group_size": 1.5}}, "zero_optimization.sub_group_size", "whole number"),
        ({"zero_optimization": {"parameter_alignment": 64}}, "zero_optimization.parameter_alignment", "true or false"),
        (
            {"zero_optimization": {"stage3_param_persistence_threshold": [1]}},
            "zero_optimization.stage3_param_persistence_threshold",
            "whole number",
        ),
        ({"zero_optimization": {"overlap_comm": "maybe"}}, "zero_optimization.overlap_comm", "null"),
        ({"fp16": {"loss_scale": "large"}}, "fp16.loss_scale", "a number of at least 0"),
        ({"wall_clock_breakdown": "true"}, "wall_clock_breakdown", "true or false"),
        ({"zero_optimization": None}, "zero_optimization", "a section of keys"),
    ],
)
def test_a_value_of_the_wrong_type_is_an_error_with_value_and_remedy(section, where, part):
    finding = only(findings(deepspeed=section, precision="fp16" if "fp16" in section else "fp32"), "error")
    assert finding.where == f"deepspeed.{where}"
    assert part in finding.message
    assert repr(_leaf(section)) in finding.message


def _leaf(value: object) -> object:
    return _leaf(next(iter(value.values()))) if isinstance(value, dict) else value


def test_an_offload_device_that_does_not_exist_is_an_error():
    section = {"zero_optimization": {"offload_optimizer": {"device": "disk"}}}
    finding = only(findings(deepspeed=section, zero_stage=2), "error")
    assert finding.where == "deepspeed.zero_optimization.offload_optimizer.device"
    assert "none or cpu" in finding.message


MIXTURE = {
    "files": [],
    "packing": "best_fit",
    "sources": {"web": {"files": ["a"], "weight": 3}, "code": {"files": ["b"], "weight": 1}},
}


def test_weights_without_a_schedule_are_refused_as_preparation_would():
    assert findings(data=MIXTURE) == []
    odd = {
        **MIXTURE,
        "sources": {name: {"files": ["a"], "weight": weight} for name, weight in (("a", 1.234567), ("b", 1))},
    }
    found = only(findings(data=odd), "error")
    with pytest.raises(UserError) as refused:
        turns_of({"a": 1.234567, "b": 1.0})
    assert found.where == "data.sources" and found.message == str(refused.value)
    assert "repeats after 2234567 samples" in found.message


@pytest.mark.parametrize(("key", "value"), [("format", "jsonl"), ("text_field", "body")])
def test_what_a_mixture_would_ignore_is_refused(key, value):
    found = only(findings(data={**MIXTURE, key: value}), "error")
    assert found.where == f"data.{key}" and f"data.sources.web.{key}={value}" in found.message
    assert findings(data={key: value}) == [], "of one corpus it is right"
