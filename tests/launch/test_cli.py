"""The command line as users call it: a process, its exit code, and one short block for a mistake."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "launch/recipes/quickstart.yaml"


def zerofleet(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "zerofleet.launch", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=60)


def refused(result: subprocess.CompletedProcess, code: int = 2) -> str:
    """The message of a mistake: on stderr alone, a few lines, no traceback."""
    assert result.returncode == code, result
    assert "Traceback" not in result.stderr + result.stdout
    lines = [line for line in result.stderr.splitlines() if not line.startswith("warning: ")]
    assert lines[0].startswith("error: ") and len(lines) <= 6
    return result.stderr


def test_validate_and_dry_run_of_every_recipe(tmp_path):
    for recipe in (ROOT / "launch/recipes").glob("*.yaml"):
        result = zerofleet("validate", recipe)
        assert (result.returncode, result.stderr) == (0, "") and "tokens per step" in result.stdout
        result = zerofleet("submit", recipe, "--dry-run", "train.steps=200", ZEROFLEET_STORAGE=str(tmp_path / "runs"))
        assert result.returncode == 0 and "  steps: 200\n" in result.stdout
        last = "# between silos: " if recipe.name.startswith("silos_") else "# global batch "
        assert result.stdout.splitlines()[-1].startswith(last)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        ("train.stepz=1", "The nearest is train.steps"),
        ("train.steps=lots", "expected a whole number"),
        ("train.steps", "write key=value"),
        ("deepspeed.elasticity.enabled=true", "was removed in DeepSpeed 0.19"),
        ("deepspeed.train_batch_size=8", "use train.global_batch_size"),
        ("deepspeed.zero_optimization.round_robin_gradients=true", "checkpoint fragments do not cover it"),
        ("data.sequence_length=257", "the model has 256 positions"),
        ("model.config.vocab_size=8000", "8192 entries and the model's vocabulary has 8000"),
        ("cluster.gpus_per_rank=0.5", "Set 0 or 1"),
        ("cluster.min_nodes=3", "lower it, or raise cluster.nodes"),
        ("model.attn_implementation=flash_attention_2", "runs on GPUs only"),
        ("model.liger_kernels=true", "Liger's kernels run on GPUs only"),
        ("cluster.bind_cores=true cluster.gpus_per_rank=1", "ranks of GPUs are not bound"),
    ],
)
def test_mistakes_in_settings(overrides, part):
    assert part in refused(zerofleet("validate", QUICKSTART, *overrides.split()))


def test_mistakes_in_files(tmp_path):
    assert "does not exist; recipes there" in refused(zerofleet("submit", QUICKSTART.with_name("quick.yaml")), 4)
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("train:\n  steps: [1\n")
    assert "wrong.yaml, line 3, column 1" in refused(zerofleet("submit", wrong))
    wrong.write_text("train: {steps: 1}\ntrain: {steps: 2}\n")
    assert "'train' is given twice (first on line 1)" in refused(zerofleet("validate", wrong))


def test_more_ranks_than_this_machine_can_hold(tmp_path):
    result = zerofleet("submit", QUICKSTART, "cluster.ranks_per_node=500", f"run.storage={tmp_path}")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    error = result.stderr[result.stderr.index("error: ") :]
    cores = len(os.sched_getaffinity(0))
    assert (
        f"500 ranks (1 nodes x 500) with cluster.cpus_per_rank=1 need 500 cores and this machine has {cores}" in error
    )
    assert list(tmp_path.iterdir()) == []


def test_ranks_that_share_cores_are_not_bound_to_them(tmp_path):
    count = len(os.sched_getaffinity(0)) + 1
    settings = [f"cluster.ranks_per_node={count}", "cluster.cpus_per_rank=0.01", "cluster.bind_cores=true"]
    said = refused(zerofleet("submit", QUICKSTART, *settings, f"run.storage={tmp_path}"))
    assert f"{count} ranks with 1 cores of their own each do not fit onto this machine's {count - 1}" in said


def test_a_storage_that_cannot_be_written(tmp_path):
    """A file where the folder should be: refused for root too."""
    (tmp_path / "file").touch()
    arguments = ["submit", QUICKSTART, "cluster.cpus_per_rank=0.1", f"run.storage={tmp_path}/file/runs"]
    assert "run.storage=" in refused(zerofleet(*arguments))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize(("options", "part"), [("ro", "mounted read-only"), ("size=4k", "the disk is full")])
def test_a_storage_that_is_read_only_or_full(tmp_path, options, part):
    mount = ["unshare", "-m", "sh", "-c"]
    probe = subprocess.run([*mount, f"mount -t tmpfs -o {options} none {tmp_path}"], capture_output=True)
    if probe.returncode != 0:
        pytest.skip("mounts are not allowed here")
    fill = f"head -c 8192 /dev/zero > {tmp_path}/fill 2>/dev/null;" if "size" in options else ""
    command = f"{sys.executable} -m zerofleet.launch submit {QUICKSTART} cluster.cpus_per_rank=0.1 run.storage={tmp_path}/runs"
    script = f"mount -t tmpfs -o {options} none {tmp_path} && {fill} {command}"
    result = subprocess.run([*mount, script], capture_output=True, text=True, timeout=60)
    assert part in refused(result)


def test_a_storage_of_an_unknown_kind():
    assert "run.storage='nope://x' cannot be opened" in refused(
        zerofleet("submit", QUICKSTART, "cluster.cpus_per_rank=0.1", "run.storage=nope://x")
    )


def test_a_wrong_verb_and_no_verb_show_the_usage():
    for arguments in (["sumbit", "x"], []):
        result = zerofleet(*arguments)
        assert result.returncode == 2 and "usage: zerofleet" in result.stderr and "Traceback" not in result.stderr


def test_a_reader_that_goes_away_is_no_error():
    command = f"{sys.executable} -m zerofleet.launch submit {QUICKSTART} --dry-run | head -n 1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr) == ("run:\n", "")


@pytest.mark.parametrize("verb", ["validate", "status", "list", "submit", "audit"])
def test_light_verbs_import_neither_torch_nor_ray_nor_transformers(verb, tmp_path):
    arguments = {
        "validate": [str(QUICKSTART)],
        "submit": [str(QUICKSTART), "--dry-run"],
        "status": ["nowhere"],
        "audit": ["nowhere"],
        "list": [str(tmp_path)],
    }[verb]
    script = f"""
import sys
from zerofleet.launch.cli import main
main({[verb, *arguments]!r})
heavy = {{"torch", "ray", "transformers", "deepspeed", "numpy", "datasets", "wandb"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=60)
