"""`zerofleet bench` as it is called: the list, a whole benchmark in the common form, and the comparison's exit codes."""

import json
import os
import subprocess
import sys

import pytest

from zerofleet.benchmarks.record import read_result

from .test_comparison import ENVIRONMENT, alternated, result, steps


def bench(*arguments, **environment) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "zerofleet.launch", "bench", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=380)


def test_the_list_and_what_is_not_in_it():
    listed = bench()
    assert listed.returncode == 0 and "overhead " in listed.stdout and "builds CHECKOUT" in listed.stdout
    unknown = bench("no-such-benchmark")
    assert unknown.returncode == 4 and "there are: builds, compare, throughput" in unknown.stderr


def test_a_result_is_a_json_file():
    wrong = bench("throughput", "--output", "notes.md")
    assert wrong.returncode == 2 and "ends in .json" in wrong.stderr


def test_exit_codes_of_a_comparison(tmp_path):
    paths = [tmp_path / name for name in ("a.json", "b.json", "other.json")]
    for path, each in zip(paths, alternated(1, 0.05), strict=False):
        each.write(path)
    result(steps([1.0]), environment={**ENVIRONMENT, "cores": 3}).write(paths[2])
    slower = bench("compare", paths[0], paths[1])
    assert slower.returncode == 1 and slower.stdout.startswith("step: slower (1.0")
    faster = bench("compare", "--json", paths[1], paths[0])
    assert faster.returncode == 0
    assert [each["verdict"] for each in json.loads(faster.stdout)["series"]] == ["faster"]
    unlike = bench("compare", paths[0], paths[2])
    assert unlike.returncode == 2 and "environment.cores: 2 against 3" in unlike.stderr
    assert bench("compare", paths[0], tmp_path / "none.json").returncode == 4


@pytest.mark.integration
@pytest.mark.timeout(400)
def test_a_sweep_of_the_real_trainer_in_the_common_form(tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": f"line {i} " * 40}) + "\n" for i in range(200)))
    model = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    model |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    job = [f"model.config={json.dumps(model)}", f"data.files=['{corpus}']", "data.tokenizer_vocab_size=300"]
    job += ["data.sequence_length=32", "train.precision=fp32", "train.activation_checkpointing=true"]
    job += ["train.global_batch_size=4", "train.eval_sequences=0"]
    sweep = ["--micro-batch", "1", "2", "--ranks", "1", "--stages", "1", "--steps", "6", "--warm-up-steps", "2"]
    output = tmp_path / "found.json"
    done = bench("throughput", *job, *sweep, "--output", output, ZEROFLEET_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    found = read_result(output)
    assert found.command == [*job, *sweep] and found.benchmark == "throughput"
    one, two = found.measured["cases"]
    assert "](found.svg)" in (tmp_path / "found.md").read_text() and (tmp_path / "found.svg").exists()
    assert (one["micro_batch_size"], two["micro_batch_size"]) == (1, 2)
    assert one["losses"] == pytest.approx(two["losses"], abs=1e-4), "the same batch, cut in other pieces"
    assert one["flops_per_token"]["mfu_causal"] < one["flops_per_token"]["mfu"] < one["flops_per_token"]["hfu"]
    assert 0 < one["mfu_causal"] < one["mfu"] < one["hfu"] < 1
    series = {each.name: each for each in found.series}
    step = series["micro-batch 1, 1 ranks, ZeRO-1: step"]
    assert len(step.values) == 6 and step.interval is not None
    assert one["tokens_per_second"] == pytest.approx(4 * 32 / step.median, rel=0.05)
