"""Checkpoints with the real DeepSpeed: any stage and world size, damage of every kind, wrong fragments, export."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.cli import assert_audited
from tests.support.ranks import Plan, job, run_attempt, run_ranks
from zerofleet.trainer.checkpoint.commit import apply_retention
from zerofleet.trainer.checkpoint.export import export
from zerofleet.trainer.checkpoint.fragments import digest
from zerofleet.trainer.checkpoint.reader import CheckpointReader
from zerofleet.trainer.checkpoint.select import select_checkpoint
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.data.prepare import prepare
from zerofleet.trainer.errors import NotFoundError, UserError
from zerofleet.trainer.init_from import pin_init_from, resolve_init_from
from zerofleet.trainer.ops import build
from zerofleet.trainer.probe import PROBE_TOKENS
from zerofleet.trainer.run_folder import CheckpointId, RunFolder

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


def folder_of(config: TrainConfig) -> RunFolder:
    return RunFolder(config.run.storage, config.run.name)


def with_stage(config: TrainConfig, stage: int) -> TrainConfig:
    return config.model_copy(update={"train": config.train.model_copy(update={"zero_stage": stage})})


def reader_digests(config: TrainConfig, step: int) -> dict[str, str]:
    """Digests computed here from the bytes of the newest checkpoint of a step, through the reader."""
    newest = [c for c in folder_of(config).checkpoints() if c.step == step][-1]
    reader = CheckpointReader(folder_of(config).storage, newest)
    return {
        f"{kind}/{name}": f"{digest(reader.read(name, kind, 0, tensor.num_elements), 0):016x}"
        for name, tensor in reader.manifest.tensors.items()
        for kind in tensor.kinds
    }


CHAIN = [(2, 1), (1, 3), (3, 2), (2, 0)]


@pytest.mark.parametrize(
    ("precision", "moments"),
    [
        *(("fp32", "fp32"), ("bf16", "fp32"), ("fp16", "fp32"), ("bf16", "bf16")),
        pytest.param("fp32", "bf16", marks=pytest.mark.further),
    ],
)
def test_stop_and_resume_over_world_sizes_and_stages(tmp_path, tiny_corpus, tiny_cache, precision, moments):
    settings = {
        "train__precision": precision,
        "train__moments_precision": moments,
        "train__steps": 12,
        "train__learning_rate": 3e-3,
        "checkpoint__interval_steps": 0,
    }
    unbroken = run_attempt(job(tmp_path / "unbroken", tiny_corpus, **settings), tiny_cache, 2)
    assert not unbroken.errors, unbroken.errors
    config = job(tmp_path / "resumed", tiny_corpus, **settings)
    losses = {}
    for number, (world_size, stage) in enumerate(CHAIN):
        last = number == len(CHAIN) - 1
        outcome = run_attempt(
            with_stage(config, stage), tiny_cache, world_size, Plan(stop_after=None if last else 3 * number + 3)
        )
        assert not outcome.errors, outcome.errors
        losses |= outcome.losses()
        done = 3 * number + 3
        assert [e.step for e in outcome.of("finished" if last else "stopped")] == [done]
        manifest = CheckpointReader(folder_of(config).storage, folder_of(config).checkpoints()[-1]).manifest
        assert (manifest.step, manifest.world_size, manifest.zero_stage) == (done, world_size, stage)
        # What the loading ranks proved collectively is proved here once more, from the bytes alone.
        assert reader_digests(config, done) == manifest.digests
        assert {tensor.kinds["exp_avg_sq"] for tensor in manifest.tensors.values()} == {
            "BF16" if moments == "bf16" else "F32"
        }
        if number:
            assert outcome.of("loaded")[0].step == done - 3
    assert losses == pytest.approx(unbroken.losses(), rel=1e-3)
    assert_audited(folder_of(config), 12)


def offloaded(*what: str) -> dict:
    return {"zero_optimization": {f"offload_{each}": {"device": "cpu"} for each in what}}


@pytest.mark.further
@pytest.mark.timeout(600)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_offloaded_optimizer_trains_saves_and_loads_as_any_other(tmp_path, tiny_corpus, tiny_cache, precision):
    """From stage to stage, world size to world size, and back to an optimizer that is not offloaded."""
    build(["cpu_adam"])  # two minutes, where nobody has
    settings = {"train__precision": precision, "train__steps": 8, "train__learning_rate": 3e-3}
    unbroken = run_attempt(job(tmp_path / "unbroken", tiny_corpus, **settings), tiny_cache, 2)
    assert not unbroken.errors, unbroken.errors
    config = job(tmp_path / "offloaded", tiny_corpus, **settings, checkpoint__interval_steps=0)
    losses = {}
    chain = [(1, 2, ("optimizer",)), (2, 3, ("optimizer",)), (3, 2, ("optimizer", "param")), (2, 2, ())]
    for number, (stage, world_size, what) in enumerate(chain, 1):
        part = with_stage(config, stage).model_copy(update={"deepspeed": offloaded(*what)})
        stop = Plan(stop_after=None if number == len(chain) else 2 * number)
        outcome = run_attempt(part, tiny_cache, world_size, stop, timeout_s=240)
        assert not outcome.errors, outcome.errors
        losses |= outcome.losses()
        manifest = CheckpointReader(folder_of(config).storage, folder_of(config).checkpoints()[-1]).manifest
        assert (manifest.step, manifest.zero_stage) == (2 * number, stage)
        assert reader_digests(config, 2 * number) == manifest.digests
    assert losses == pytest.approx(unbroken.losses(), rel=1e-3)
    assert_audited(folder_of(config), 8)


@pytest.mark.parametrize("stage", [1, 3])
def test_weights_of_which_the_code_makes_another_loss_are_refused(tmp_path, tiny_corpus, tiny_cache, stage):
    config = with_stage(job(tmp_path, tiny_corpus, train__steps=4, checkpoint__interval_steps=2), stage)
    assert not run_attempt(config, tiny_cache, 2, Plan(stop_after=2)).errors
    run, saved = folder_of(config), CheckpointId(2, 1)
    manifest = CheckpointReader(run.storage, saved).manifest
    assert manifest.probe_loss is not None and 3.0 < manifest.probe_loss < 7.0, (
        "that of some tokens of a model that knows little"
    )
    assert manifest.probe_tokens == PROBE_TOKENS
    run.storage.remove(saved.manifest)
    run.storage.create(saved.manifest, replace(manifest, probe_loss=manifest.probe_loss * 1.001).to_bytes())
    outcome = run_attempt(config, tiny_cache, 2)
    assert {name for _, name, _ in outcome.errors} == {"UserError"}
    assert all(
        "the weights are bitwise those of step 2, but the probe loss is" in text for _, _, text in outcome.errors
    )


def test_the_state_after_a_load_is_bitwise_the_saved_one(tmp_path, tiny_corpus, tiny_cache):
    """A run that loads and saves at once writes the same tensors, whatever the stage and world size."""
    config = job(tmp_path, tiny_corpus, train__steps=4, checkpoint__interval_steps=2)
    assert not run_attempt(config, tiny_cache, 2, Plan(stop_after=2)).errors
    saved = reader_digests(config, 2)
    for world_size, stage in [(3, 3), (1, 0), (2, 2)]:
        copy = job(tmp_path / f"{world_size}-{stage}", tiny_corpus, train__steps=2, train__zero_stage=stage)
        shutil.copytree(folder_of(config).storage.local_path(), folder_of(copy).storage.local_path())
        outcome = run_attempt(copy, tiny_cache, world_size)
        assert not outcome.errors, outcome.errors
        assert reader_digests(copy, 2) == saved


@pytest.mark.further
def test_moments_of_another_dtype_are_refused_and_weights_alone_are_taken(tmp_path, tiny_corpus, tiny_cache):
    config = job(tmp_path, tiny_corpus, train__steps=4, train__moments_precision="bf16")
    assert not run_attempt(config, tiny_cache, 2, Plan(stop_after=2)).errors
    wide = config.model_copy(update={"train": config.train.model_copy(update={"moments_precision": "fp32"})})
    outcome = run_attempt(wide, tiny_cache, 2)
    assert {name for _, name, _ in outcome.errors} == {"UserError"}
    assert all("are BF16 and this run's are F32: set train.moments_precision" in text for _, _, text in outcome.errors)
    start = {"name": "branch", "storage": str(tmp_path / "branch"), "init_from": folder_of(config).storage.url}
    outcome = run_attempt(job(tmp_path, tiny_corpus, run=start, train__steps=1), tiny_cache, 2)
    assert not outcome.errors, outcome.errors


@pytest.fixture(scope="module")
def three_checkpoints(tmp_path_factory, tiny_corpus, tiny_cache):
    """A run of six steps on two ranks with checkpoints at 2, 4 and 6."""
    config = job(tmp_path_factory.mktemp("three"), tiny_corpus)
    outcome = run_attempt(config, tiny_cache, 2)
    assert not outcome.errors, outcome.errors
    return config, outcome


def copy_of(three_checkpoints, folder, **changes) -> TrainConfig:
    config = three_checkpoints[0]
    shutil.copytree(config.run.storage, folder / "runs")
    run = config.run.model_copy(update={"storage": str(folder / "runs")})
    return config.model_copy(update={"run": run, **changes})


NEWEST = CheckpointId(6, 1)
FILES = ["manifest.json", "rank-00000-of-00002.safetensors", "rank-00001-of-00002.safetensors"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("where", [0.001, 0.3, 0.999])
def test_one_flipped_byte_is_found_and_the_checkpoint_before_is_taken(tmp_path, three_checkpoints, file, where):
    config = copy_of(three_checkpoints, tmp_path)
    path = folder_of(config).storage.local_path(f"{NEWEST.folder}/{file}")
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 0x10
    path.write_bytes(data)
    selection = select_checkpoint(folder_of(config), full=True)
    assert selection.checkpoint == CheckpointId(4, 1)
    [(skipped, reason)] = selection.skipped
    assert skipped == NEWEST and (file in reason)


@pytest.mark.parametrize("file", FILES)
def test_a_truncated_or_missing_file_is_found(tmp_path, three_checkpoints, file):
    config = copy_of(three_checkpoints, tmp_path)
    path = folder_of(config).storage.local_path(f"{NEWEST.folder}/{file}")
    path.write_bytes(path.read_bytes()[:-7])
    assert select_checkpoint(folder_of(config)).checkpoint == CheckpointId(4, 1)
    path.unlink()
    assert select_checkpoint(folder_of(config)).checkpoint == CheckpointId(4, 1)


def test_ranks_refuse_a_flipped_byte_that_only_a_full_read_finds(tmp_path, three_checkpoints, tiny_cache):
    config = copy_of(three_checkpoints, tmp_path)
    run = folder_of(config)
    path = run.storage.local_path(f"{NEWEST.folder}/{FILES[2]}")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert select_checkpoint(run).checkpoint == NEWEST, "sizes and headers are right"
    run.claim_attempt(2, NEWEST, 3, 1)
    outcome = run_ranks(config, tiny_cache, 3, 2)
    assert {name for _, name, _ in outcome.errors} == {"CheckpointUnusable"}
    assert select_checkpoint(run, exclude=frozenset([NEWEST])).checkpoint == CheckpointId(4, 1)


def test_without_a_manifest_that_can_be_used_a_run_that_had_progress_never_starts_anew(tmp_path, three_checkpoints):
    """Lost manifests, and a start whose checkpoint a zombie deleted while it fenced off the rest."""
    run = folder_of(copy_of(three_checkpoints, tmp_path / "a"))
    run.claim_attempt(2, NEWEST, 2, 1)
    for checkpoint in run.checkpoints():
        run.storage.remove(checkpoint.manifest)
    selection = select_checkpoint(run)
    assert selection.checkpoint is None and selection.found > 0
    run = folder_of(copy_of(three_checkpoints, tmp_path / "b"))
    run.claim_attempt(2, CheckpointId(2, 1), 2, 1)
    run.storage.remove(CheckpointId(2, 1).folder)
    selection = select_checkpoint(run)
    assert selection.checkpoint is None and selection.found > 0


def test_a_rank_whose_attempt_was_succeeded_ends_at_its_next_save(tmp_path, tiny_corpus, tiny_cache):
    config = job(tmp_path, tiny_corpus)
    run = folder_of(config)
    run.create("{}")
    run.claim_attempt(1, None, 2, 1)
    run.claim_attempt(2, None, 2, 1)
    outcome = run_ranks(config, tiny_cache, 2, 1)
    assert {name for _, name, _ in outcome.errors} == {"Superseded"}
    assert run.checkpoints() == [] and sorted(outcome.losses()) == [1, 2]


def test_a_zombie_deletes_nothing_and_its_leftovers_go(tmp_path, three_checkpoints):
    config = copy_of(three_checkpoints, tmp_path)
    config = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"keep_last": 1})})
    run = folder_of(config)
    run.claim_attempt(2, CheckpointId(2, 1), 2, 1)
    apply_retention(config.checkpoint, run, NEWEST)
    assert [c.step for c in run.checkpoint_folders()] == [2, 4, 6]
    run.storage.create(CheckpointId(4, 1).folder + "/half-written", b"x")
    shutil.copytree(run.storage.local_path(NEWEST.folder), run.storage.local_path(CheckpointId(6, 2).folder))
    apply_retention(config.checkpoint, run, CheckpointId(6, 2))
    assert run.checkpoint_folders() == [CheckpointId(6, 2)] and run.storage.list("checkpoints") == ["step-00000006"]


def test_files_of_a_zombie_are_ignored(tmp_path, three_checkpoints):
    """An attempt that was given up still writes checkpoint 6, after its successor started from 4."""
    run = folder_of(copy_of(three_checkpoints, tmp_path))
    run.claim_attempt(2, CheckpointId(4, 1), 2, 1)
    selection = select_checkpoint(run)
    assert selection.checkpoint == CheckpointId(4, 1)
    assert selection.skipped[0][0] == NEWEST and "older attempt" in selection.skipped[0][1]


def test_checkpoints_that_all_fail_are_not_taken_for_a_new_run(tmp_path, three_checkpoints):
    run = folder_of(copy_of(three_checkpoints, tmp_path))
    for checkpoint in run.checkpoints():
        run.storage.local_path(checkpoint.manifest).write_text("{}")
    selection = select_checkpoint(run)
    assert selection.checkpoint is None and selection.found == 3


def test_a_wrong_fragment_is_refused(tmp_path, tiny_corpus, tiny_cache):
    """round_robin_gradients makes DeepSpeed's mapping point at other parameters' data. The lint refuses it; so do the ranks."""
    config = job(
        tmp_path, tiny_corpus, deepspeed={"zero_optimization": {"round_robin_gradients": True}}, train__zero_stage=2
    )
    outcome = run_attempt(config, tiny_cache, 2)
    assert {name for _, name, _ in outcome.errors} == {"WrongFragment"}
    assert not outcome.of("step")


@pytest.mark.parametrize(
    ("precision", "stage"), [("bf16", 0), ("bf16", 1), ("bf16", 2), ("bf16", 3), ("fp32", 0), ("fp32", 2)]
)
def test_a_nan_gradient_is_noticed_at_its_step(tmp_path, tiny_corpus, tiny_cache, precision, stage):
    config = job(tmp_path, tiny_corpus, train__precision=precision, train__zero_stage=stage)
    outcome = run_attempt(config, tiny_cache, 2, Plan(nan_at=(1, 4)))
    assert {(name, message.split(" was")[0]) for _, name, message in outcome.errors} == {("NonFiniteStep", "step 4")}
    assert sorted(outcome.losses()) == [1, 2, 3]


def test_an_overflow_in_fp16_is_a_recorded_skip(tmp_path, tiny_corpus, tiny_cache):
    config = job(tmp_path, tiny_corpus, train__precision="fp16")
    outcome = run_attempt(config, tiny_cache, 2, Plan(nan_at=(0, 4)))
    assert not outcome.errors, outcome.errors
    assert [e.step for e in outcome.of("skipped")] == [4]
    manifest = CheckpointReader(folder_of(config).storage, NEWEST).manifest
    assert set(manifest.scalars.optimizer_steps) == {5} and manifest.scalars.engine["skipped_steps"] == 1


def test_another_corpus_is_refused(tmp_path, three_checkpoints, tiny_cache):
    config = copy_of(three_checkpoints, tmp_path)
    run = folder_of(config)
    path = run.storage.local_path(NEWEST.manifest)
    manifest = CheckpointReader(run.storage, NEWEST).manifest
    changed = type(manifest)(**{**manifest.__dict__, "fingerprints": {**manifest.fingerprints, "data": "0" * 32}})
    path.write_bytes(changed.to_bytes())
    run.claim_attempt(2, NEWEST, 2, 1)
    outcome = run_ranks(config, tiny_cache, 2, 2)
    assert {name for _, name, _ in outcome.errors} == {"UserError"}
    assert "the data changed" in outcome.errors[0][2]


def test_the_export_gives_the_runs_held_out_loss(tmp_path, three_checkpoints, tiny_cache):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config, outcome = three_checkpoints
    target = tmp_path / "exported"
    export(folder_of(config), None, target, "fp32")
    model = AutoModelForCausalLM.from_pretrained(target).eval()
    input_ids, labels = map(torch.from_numpy, tiny_cache.heldout.read(np.arange(8)))
    with torch.no_grad():
        logits = model(input_ids=input_ids).logits
    loss = torch.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1), ignore_index=-100)
    assert float(loss) == pytest.approx(outcome.of("eval")[-1].data["loss"], rel=1e-5)
    assert len(AutoTokenizer.from_pretrained(target)) == tiny_cache.tokenizer_size
    # The fp32 export holds the master weights themselves.
    reader = CheckpointReader(folder_of(config).storage, NEWEST)
    weights = dict(model.named_parameters())
    for name in reader.manifest.tensors:
        assert np.array_equal(reader.read_tensor(name, "master"), weights[name].detach().numpy())


def test_an_export_replaces_an_export_and_nothing_else(tmp_path, three_checkpoints):
    run = folder_of(three_checkpoints[0])
    mine = tmp_path / "models"
    (mine / "thesis").mkdir(parents=True)
    with pytest.raises(UserError, match="1 files or folders that are no export .thesis.*Name a new folder"):
        export(run, None, mine, "fp32")
    assert (mine / "thesis").is_dir()
    target = tmp_path / "exported"
    for dtype in ("fp32", "bf16"):
        export(run, None, target, dtype)
    assert (target / "model.safetensors").stat().st_size < 30880 * 3
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_another_seed_or_global_batch_is_refused(tmp_path, three_checkpoints, tiny_cache):
    config = copy_of(three_checkpoints, tmp_path)
    changed = config.model_copy(update={"train": config.train.model_copy(update={"global_batch_size": 4, "steps": 9})})
    folder_of(config).claim_attempt(2, NEWEST, 2, 1)
    outcome = run_ranks(changed, tiny_cache, 2, 2)
    assert {(name, message.split(" since")[0]) for _, name, message in outcome.errors} == {
        ("UserError", "the job changed")
    }


def test_the_loss_scaler_goes_on_where_it_was(tmp_path, tiny_corpus, tiny_cache):
    """The scale doubles every second step, so a restart that forgot it would give other losses."""
    settings = {
        "train__precision": "fp16",
        "train__steps": 8,
        "deepspeed": {"fp16": {"loss_scale_window": 2, "initial_scale_power": 8}},
    }
    unbroken = run_attempt(job(tmp_path / "a", tiny_corpus, **settings), tiny_cache, 2)
    config = job(tmp_path / "b", tiny_corpus, **settings)
    first = run_attempt(config, tiny_cache, 2, Plan(stop_after=4))
    scale = CheckpointReader(
        folder_of(config).storage, folder_of(config).checkpoints()[-1]
    ).manifest.scalars.loss_scaler
    assert scale["scale"] > 2**8, "it moved"
    second = run_attempt(config, tiny_cache, 2)
    assert not first.errors and not second.errors
    assert first.losses() | second.losses() == unbroken.losses()
    ends = [
        CheckpointReader(folder_of(c).storage, folder_of(c).checkpoints()[-1]).manifest.scalars
        for c in (config, job(tmp_path / "a", tiny_corpus, **settings))
    ]
    assert ends[0] == ends[1]


def test_init_from_is_resolved_once_and_in_the_runs_own_storage(tmp_path, three_checkpoints, tiny_corpus, tiny_cache):
    storage = three_checkpoints[0].run.storage
    config = job(tmp_path, tiny_corpus, run={"name": "pinned", "storage": storage, "init_from": "tiny@4"})
    run = folder_of(config)
    assert pin_init_from(run, config.run) == f"{storage}/tiny@4"
    run.claim_attempt(1, None, 2, 1, f"{storage}/tiny@2")
    assert pin_init_from(run, config.run) == f"{storage}/tiny@2", "the first attempt decides"
    with pytest.raises(NotFoundError, match="no checkpoint of step 5; it has 2, 4, 6"):
        resolve_init_from("tiny@5", storage)


def test_ranks_that_see_other_data_are_refused_by_name(tmp_path, tiny_corpus, tiny_cache):
    other = tmp_path / "other"
    shutil.copytree(tiny_corpus, other, ignore=shutil.ignore_patterns("cache"))
    (other / "00.txt").write_text("a stale file")
    stale = prepare(job(other, other).data, 0, lambda stage, fraction, detail: None)
    outcome = run_attempt(job(tmp_path, tiny_corpus), tiny_cache, 2, Plan(cache_of_rank={1: str(stale.path)}))
    assert {name for _, name, _ in outcome.errors} == {"DataError"}
    assert "rank 1 has another data than rank 0" in outcome.errors[0][2]


def test_init_from_takes_weights_and_nothing_else(tmp_path, three_checkpoints, tiny_corpus, tiny_cache):
    source, outcome = three_checkpoints
    name = f"{source.run.storage}/{source.run.name}@6"
    config = job(
        tmp_path, tiny_corpus, run={"name": "branch", "storage": str(tmp_path), "init_from": name}, train__zero_stage=3
    )
    branch = run_attempt(config, tiny_cache, 1)
    assert not branch.errors, branch.errors
    assert branch.of("eval")[0].data["loss"] == pytest.approx(outcome.of("eval")[-1].data["loss"], rel=1e-5)
    assert sorted(branch.losses()) == [1, 2, 3, 4, 5, 6]


def test_retention_keeps_the_newest(tmp_path, tiny_corpus, tiny_cache):
    config = job(tmp_path, tiny_corpus, checkpoint={"interval_steps": 1, "keep_last": 2, "keep_every_steps": 3})
    assert not run_attempt(config, tiny_cache, 2).errors
    assert [c.step for c in folder_of(config).checkpoints()] == [3, 5, 6]
    assert json.loads(folder_of(config).job_yaml())["run"]["name"] == "tiny"
