"""Mistakes that only the driver can see, through the whole command line: exit code, message, and a second try."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

JOB = {
    "model": {
        "config": {
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
        }
    },
    "data": {"tokenizer_vocab_size": 300, "sequence_length": 32, "heldout_fraction": 0.1},
    "train": {"steps": 4, "global_batch_size": 4, "micro_batch_size": 2, "precision": "fp32"},
    "checkpoint": {"interval_steps": 2},
    "cluster": {"ranks_per_node": 2, "cpus_per_rank": 0.5},
}


@pytest.fixture
def job(tmp_path, tiny_corpus) -> Path:
    """A recipe that trains in seconds."""
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({**JOB, "data": {**JOB["data"], "files": [f"{tiny_corpus}/*.txt"]}}))
    return path


def submit(job: Path, *overrides: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "ZEROFLEET_STORAGE": str(job.parent / "runs"),
        "ZEROFLEET_CACHE": str(job.parent / "cache"),
    }
    command = [*prefix, sys.executable, "-m", "zerofleet.launch", "submit", str(job), "run.name=a", *overrides]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=150)


def refused(result: subprocess.CompletedProcess, code: int = 2) -> str:
    assert result.returncode == code, result
    assert "Traceback" not in result.stdout + result.stderr
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) <= 6
    return result.stderr


def test_a_path_that_matches_nothing_and_then_the_mended_recipe(job, tmp_path):
    message = refused(submit(job, f"data.files=[{tmp_path}/nowhere/*.txt]"))
    assert f"{tmp_path}/nowhere/*.txt" in message
    result = submit(job)
    assert result.returncode == 0, result
    assert "a: FINISHED at step 4 of 4" in result.stdout


def test_an_empty_corpus(job, tmp_path):
    (tmp_path / "empty.txt").write_bytes(b" \n\n")
    assert "empty" in refused(submit(job, f"data.files=[{tmp_path}/empty.txt]"))


def test_bytes_that_do_not_decode(job, tmp_path):
    (tmp_path / "bytes.txt").write_bytes(b"some text \xff\xfe and more\n" * 50)
    message = refused(submit(job, f"data.files=[{tmp_path}/bytes.txt]"))
    assert "bytes.txt" in message and "UTF-8" in message


def test_bad_data_that_is_left_out_and_a_filter_of_the_users(job, tmp_path, tiny_corpus, monkeypatch):
    (tmp_path / "bytes.txt").write_bytes(b"some text \xff\xfe and more\n" * 50)
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/quality.py").write_text("def is_good(text):\n    return len(text) % 3 > 0\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}/modules{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    files = f"data.files=[{tiny_corpus}/*.txt, {tmp_path}/bytes.txt]"
    result = submit(job, files, "data.on_bad=quarantine", "data.filter=quality:is_good")
    assert result.returncode == 0, result
    command = [sys.executable, "-m", "zerofleet.launch", "status", f"{tmp_path}/runs/a"]
    status = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    assert f"1 bad place left out (all from there on: {tmp_path}/bytes.txt: byte 10 (0xff)" in status
    events = "".join(path.read_text() for path in (tmp_path / "runs/a/events").rglob("*") if path.is_file())
    assert "left out by data.filter" in events


def test_a_tokenizer_larger_than_the_vocabulary(job, tiny_cache):
    message = refused(submit(job, f"data.tokenizer={tiny_cache.tokenizer_path}", "model.config.vocab_size=100"))
    assert f"the tokenizer has {tiny_cache.tokenizer_size} entries and the model's vocabulary only 100" in message


def test_a_sequence_longer_than_positions_that_the_recipe_does_not_give(job):
    """gpt2 has 1024 positions by default, which transformers knows and lint does not."""
    gpt2 = "model.config={model_type: gpt2, n_embd: 32, n_layer: 1, n_head: 2}"
    assert "the model has 1024 positions" in refused(submit(job, gpt2, "data.sequence_length=1100"))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.timeout(300)
def test_storage_that_fills_up_while_saving_and_then_has_room(job, tmp_path):
    """A tmpfs that holds one checkpoint at most; enlarged, `resume` finishes the run."""
    runs = tmp_path / "runs"
    runs.mkdir()
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", str(runs)], capture_output=True).returncode:
        pytest.skip("mounts are not allowed here")
    zerofleet = f"{sys.executable} -m zerofleet.launch"
    script = f"""
        mount -t tmpfs -o size=700k none {runs} || exit 99
        {zerofleet} submit {job} run.name=a cluster.stop_timeout_s=12; echo "first: $?"
        mount -o remount,size=50m {runs}
        {zerofleet} resume a; echo "second: $?"
    """
    environment = {**os.environ, "ZEROFLEET_STORAGE": str(runs), "ZEROFLEET_CACHE": str(tmp_path / "cache")}
    result = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, env=environment, timeout=280
    )
    assert "first: 1\n" in result.stdout and "second: 0\n" in result.stdout, result
    assert "the disk is full: free space there" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr
