"""Importing model folders of others: what is taken, and what is said of what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.support.ranks import TINY_LLAMA
from zerofleet.trainer.errors import NotFoundError, UserError
from zerofleet.trainer.foreign import find, import_model

FIELDS = {key: value for key, value in TINY_LLAMA.items() if key != "model_type"} | {"vocab_size": 64}


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A Trainer's checkpoint without DeepSpeed, in bf16."""
    folder = tmp_path / "run/checkpoint-7"
    AutoModelForCausalLM.from_config(LlamaConfig(**FIELDS)).to(torch.bfloat16).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "optimizer.pt").write_bytes(b"not read")
    return folder


def changed(checkpoint: Path, change) -> None:
    file = checkpoint / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file)


def test_sixteen_bit_weights_are_widened_and_the_tokenizer_comes_along(checkpoint, tmp_path):
    said: list[str] = []
    import_model(find(checkpoint, None), tmp_path / "ours", said.append)
    before, after = load_file(checkpoint / "model.safetensors"), load_file(tmp_path / "ours/model.safetensors")
    assert all(torch.equal(after[name], before[name].float()) for name in before) and before.keys() == after.keys()
    assert "the bfloat16 weights of checkpoint-7, as there are no fp32 masters" in said[0]
    assert sorted(p.name for p in (tmp_path / "ours").iterdir() if "generation" not in p.name) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert json.loads((tmp_path / "ours/config.json").read_text())["dtype"] == "float32"


def test_several_files_of_weights_are_one_model(checkpoint, tmp_path):
    weights = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    names = sorted(weights)
    for number, part in enumerate((names[:5], names[5:])):
        save_file({name: weights[name] for name in part}, checkpoint / f"model-{number + 1:05d}-of-00002.safetensors")
    import_model(find(checkpoint, None), tmp_path / "ours", lambda sentence: None)
    assert load_file(tmp_path / "ours/model.safetensors").keys() == weights.keys()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights: weights.pop("model.norm.weight"), r"it lacks 1 weights \(model.norm.weight"),
        (lambda weights: weights.update({"model.norm.weight": torch.ones(3)}), "it has in another shape 1 weights"),
        (
            lambda weights: weights.update({"adapter.weight": torch.ones(3)}),
            r"it has besides 1 weights \(adapter.weight",
        ),
    ],
)
def test_another_model_is_refused(checkpoint, tmp_path, change, said):
    changed(checkpoint, change)
    with pytest.raises(UserError, match=said):
        import_model(find(checkpoint, None), tmp_path / "ours", lambda sentence: None)
    assert not (tmp_path / "ours").exists()


def test_what_is_no_checkpoint(checkpoint, tmp_path):
    with pytest.raises(NotFoundError, match="is no folder"):
        find(tmp_path / "nothing", None)
    with pytest.raises(UserError, match=r"name one of checkpoint-7"):
        find(checkpoint.parent, None)
    (checkpoint / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config.json in .*--config"):
        find(checkpoint, None)


def test_a_folder_that_is_there_is_not_written_to(checkpoint, tmp_path):
    with pytest.raises(UserError, match="is there already"):
        import_model(find(checkpoint, None), checkpoint, lambda sentence: None)


def test_a_damaged_file_of_weights(checkpoint, tmp_path):
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model.safetensors cannot be read"):
        import_model(find(checkpoint, None), tmp_path / "ours", lambda sentence: None)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"])
def test_a_file_of_weights_that_was_never_fetched(checkpoint, tmp_path, content):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"pytorch_model.bin cannot be read"):
        import_model(find(checkpoint, None), tmp_path / "ours", lambda sentence: None)


def test_tensor_parallel_checkpoints_are_refused(checkpoint, tmp_path):
    step = checkpoint / "global_step7"
    step.mkdir()
    for rank in range(2):
        (step / f"mp_rank_{rank:02d}_model_states.pt").touch()
    with pytest.raises(UserError, match="tensor parallelism of 2"):
        import_model(find(checkpoint, None), tmp_path / "ours", lambda sentence: None)
