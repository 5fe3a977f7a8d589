"""Checkpoints that DeepSpeed itself has written, imported: the fp32 masters bitwise, at every stage."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.support.ranks import CONTEXT, TINY_LLAMA
from zerofleet.launch.cli import main
from zerofleet.trainer.world import World, free_port

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

RANKS, STEPS = 2, 3
FIELDS = {key: value for key, value in TINY_LLAMA.items() if key != "model_type"} | {"vocab_size": 64}


def _train(rank: int, port: int, folder: str, stage: int, precision: str) -> None:
    """A bare DeepSpeed loop; rank 0 leaves its masters in masters.safetensors."""
    os.environ.update(World(rank, rank, 0, RANKS, "test", 1).env("127.0.0.1", port))
    import deepspeed

    deepspeed.init_distributed("gloo")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**FIELDS))
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": stage}}
    if precision != "fp32":
        config[precision] = {"enabled": True}
    backwards = list(model.parameters())[::-1]  # masters are not in the order of the weights' names
    decayed = [[p for p in backwards if (p.dim() > 1) is is_wide] for is_wide in (True, False)]
    optimizer = torch.optim.AdamW([{"params": group} for group in decayed], lr=1e-2)
    engine, _, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    draw = torch.Generator().manual_seed(rank)
    for _ in range(STEPS):
        tokens = torch.randint(0, 64, (1, 16), generator=draw)
        engine.backward(engine(input_ids=tokens, labels=tokens).loss)
        engine.step()
    engine.save_checkpoint(folder)
    masters = _masters(engine, stage, precision)
    if rank == 0:
        save_file({name: tensor.contiguous() for name, tensor in masters.items()}, Path(folder, "masters.safetensors"))
        model.config.save_pretrained(folder)


def _masters(engine, stage: int, precision: str) -> dict[str, torch.Tensor]:
    from deepspeed.utils import safe_get_full_fp32_param

    named = dict(engine.module.named_parameters())
    if stage:
        return {name: safe_get_full_fp32_param(parameter) for name, parameter in named.items()}
    if precision == "fp32":
        return {name: parameter.detach() for name, parameter in named.items()}
    names = {id(parameter): name for name, parameter in named.items()}
    pairs = zip(engine.optimizer.fp16_groups, engine.optimizer.fp32_groups, strict=True)
    return {names[id(low)]: high.detach() for lows, highs in pairs for low, high in zip(lows, highs, strict=True)}


def trained(folder: Path, stage: int, precision: str) -> Path:
    port = free_port()
    ranks = [CONTEXT.Process(target=_train, args=(rank, port, str(folder), stage, precision)) for rank in range(RANKS)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(100)
    assert [process.exitcode for process in ranks] == [0, 0]
    return folder


@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "fp32"), (0, "bf16"), (1, "bf16"), (2, "bf16"), (3, "bf16")], ids=str
)
def test_the_masters_come_over_bitwise(tmp_path, stage, precision):
    source, target = trained(tmp_path / "theirs", stage, precision), tmp_path / "ours"
    assert main(["import", str(source), str(target)]) == 0
    found, masters = load_file(target / "model.safetensors"), load_file(source / "masters.safetensors")
    assert found.keys() == masters.keys() and len(found) > 10
    assert all(torch.equal(found[name], masters[name]) for name in masters)
    assert any(tensor.dim() == 1 and (tensor != 1).any() for tensor in found.values()), "the norms were trained too"
    model = AutoModelForCausalLM.from_pretrained(target)
    assert model.dtype == torch.float32 and model.lm_head.weight is model.model.embed_tokens.weight


def test_a_trainers_checkpoint_has_its_masters_in_the_step_inside_it(tmp_path, capsys):
    """The layout of the Hugging Face Trainer under DeepSpeed: 16-bit weights beside global_step3, which is what counts."""
    source = trained(tmp_path / "run/checkpoint-3", 2, "bf16")
    masters = load_file(source / "masters.safetensors")
    (source / "masters.safetensors").unlink()
    save_file({name: tensor.bfloat16() for name, tensor in masters.items()}, source / "model.safetensors")
    assert main(["import", str(source), str(tmp_path / "ours")]) == 0
    assert "the fp32 masters of global_step3 (ZeRO)" in capsys.readouterr().err
    found = load_file(tmp_path / "ours/model.safetensors")
    assert all(torch.equal(found[name], masters[name]) for name in masters)
    assert main(["import", str(tmp_path / "run"), str(tmp_path / "other")]) == 2
    assert "name one of checkpoint-3" in capsys.readouterr().err
    part = next((source / "global_step3").glob("*_optim_states.pt"))
    part.write_bytes(part.read_bytes()[:1000])
    assert main(["import", str(source), str(tmp_path / "other")]) == 2
    assert "DeepSpeed's zero_to_fp32 cannot read" in capsys.readouterr().err
    shutil.rmtree(source / "global_step3")
    assert main(["import", str(source), str(tmp_path / "other")]) == 2
    assert "names global_step3, which is not there" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
