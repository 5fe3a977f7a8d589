"""Values of the deepspeed section, judged by DeepSpeed's own classes."""

import json
from contextlib import suppress

import pytest
from pydantic import BaseModel, ValidationError

pytest.importorskip("deepspeed")

from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig, DeepSpeedZeroOffloadParamConfig

from zerofleet.cluster import tasks
from zerofleet.trainer.__main__ import main
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.deepspeed_check import check_deepspeed_section
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.events import Control
from zerofleet.trainer.passthrough_keys import ALLOWED, VALUE_TYPES
from zerofleet.trainer.world import World

pytestmark = pytest.mark.timeout(60)

CLASSES: dict[str, type[BaseModel]] = {
    "zero_optimization": DeepSpeedZeroConfig,
    "zero_optimization.offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig,
    "zero_optimization.offload_param": DeepSpeedZeroOffloadParamConfig,
    "bf16": DeepSpeedBF16Config,
    "fp16": DeepSpeedFP16Config,
}
SAMPLES = [True, False, 0, 1, 2, -1, 1.5, 5e7, "7", "5e8", "true", "off", "big", "cpu", "none", None, [], [1]]


def config(deepspeed: dict, **train) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "model": {"config": {"model_type": "llama"}},
            "data": {"files": ["python-stdlib"], "sequence_length": 64},
            "train": {"steps": 10, "global_batch_size": 8, "micro_batch_size": 2, **train},
            "deepspeed": deepspeed,
        }
    )


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_what_deepspeed_takes_passes(stage, precision):
    section = {
        "zero_optimization": {"reduce_bucket_size": 5e7, "overlap_comm": True, "leaf_module": {"names": ["experts"]}},
        "data_types": {"keep_in_fp32_modules": "auto"},
        "comms_logger": {"enabled": False},
        "timers": {"throughput": {"enabled": False}},
        "wall_clock_breakdown": True,
    }
    check_deepspeed_section(config(section, zero_stage=stage, precision=precision), 3)


@pytest.mark.parametrize(
    ("section", "where", "value"),
    [
        ({"zero_optimization": {"reduce_bucket_size": "big"}}, "zero_optimization.reduce_bucket_size", "'big'"),
        ({"zero_optimization": {"parameter_alignment": 64}}, "zero_optimization.parameter_alignment", "64"),
        (
            {"zero_optimization": {"stage3_prefetch_bucket_size": -1}},
            "zero_optimization.stage3_prefetch_bucket_size",
            "-1",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"pin_memory": "perhaps"}}},
            "zero_optimization.offload_optimizer.pin_memory",
            "'perhaps'",
        ),
        ({"zero_optimization": {"leaf_module": {"names": 5}}}, "zero_optimization.leaf_module.names", "5"),
        ({"fp16": {"loss_scale_window": "long"}}, "fp16.loss_scale_window", "'long'"),
        ({"comms_logger": {"prof_ops": 3}}, "comms_logger.prof_ops", "3"),
        ({"timers": {"throughput": {"enabled": 9}}}, "timers.throughput.enabled", "9"),
    ],
)
def test_a_bad_value_is_the_users_mistake_and_is_named(section, where, value):
    precision = next((name for name in ("bf16", "fp16") if name in section), "fp32")
    with pytest.raises(UserError) as raised:
        check_deepspeed_section(config(section, zero_stage=2, precision=precision), 2)
    assert f"deepspeed.{where}: it is {value}, " in str(raised.value)
    assert "remove the key" in str(raised.value)


def test_all_bad_values_of_a_section_are_named_at_once():
    section = {"zero_optimization": {"reduce_bucket_size": "big", "parameter_alignment": 64}}
    with pytest.raises(UserError, match="reduce_bucket_size: (?s:.*)parameter_alignment: "):
        check_deepspeed_section(config(section), 1)


@pytest.mark.parametrize(
    "section",
    [
        {"flops_profiler": {"enabled": "yes"}},
        {"vocabulary_size": "many"},
        {"timers": True},
        {"data_types": {"keep_in_fp32_modules": 3}},
        {"zero_optimization": None},
    ],
)
def test_what_deepspeed_fails_on_by_itself_is_the_users_mistake_too(section):
    with pytest.raises(UserError, match="does not take the section .*or remove them"):
        check_deepspeed_section(config(section), 2)


def test_the_check_of_a_run_refuses_it_before_anything_is_opened(tmp_path):
    bad = config({"zero_optimization": {"parameter_alignment": 64}})
    world = World(rank=0, local_rank=0, node_rank=0, world_size=2, node_name="here", attempt=1)
    with pytest.raises(UserError, match="parameter_alignment"):
        tasks.check(bad, world, tmp_path / "none", lambda event: None, lambda: Control("none"), None, None)


def test_a_run_without_ray_refuses_it_with_exit_code_2(tmp_path, capsys):
    bad = config({"zero_optimization": {"parameter_alignment": 64}})
    sections = bad.model_dump(mode="json") | {"run": {"name": "bad", "storage": f"file://{tmp_path}"}}
    job = tmp_path / "job.yaml"
    job.write_text(json.dumps(sections))
    assert main([str(job)]) == 2
    assert "parameter_alignment: it is 64" in capsys.readouterr().err


def test_types_are_given_for_every_plain_key_of_the_sections():
    others = {"leaf_module", "offload_param", "offload_optimizer", "nvme_path"}
    for section in CLASSES:
        assert {key for key in ALLOWED[section] if f"{section}.{key}" not in VALUE_TYPES} <= others, section


@pytest.mark.parametrize("path", [path for path in VALUE_TYPES if "." in path])
def test_the_types_known_without_deepspeed_are_its_own(path):
    section, _, key = path.rpartition(".")
    for value in SAMPLES:
        accepted = False
        with suppress(ValidationError, ValueError):
            CLASSES[section](**{key: value})
            accepted = True
        # fp16 has rules of its own on top, such as no boolean for a number: they are left to the check by DeepSpeed.
        if accepted or section != "fp16":
            assert VALUE_TYPES[path].takes(value) == accepted, value
    assert not VALUE_TYPES[path].takes("big")
