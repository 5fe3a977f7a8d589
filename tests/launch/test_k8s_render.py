"""`zerofleet k8s render` as users call it: output, mistakes, speed, and nothing heavy imported."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from zerofleet.launch import cli

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "launch/recipes/quickstart.yaml")
CPU = str(ROOT / "k8s/profiles/cpu.yaml")
RENDER = ["k8s", "render", QUICKSTART, "--profile", CPU]


@pytest.fixture
def call(capsys):
    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_three_documents_to_standard_output_or_a_file(call, tmp_path):
    code, out, err = call(*RENDER, "run.name=first")
    assert (code, err) == (0, "")
    assert [d["kind"] for d in yaml.safe_load_all(out)] == ["ConfigMap", "PodDisruptionBudget", "RayJob"]
    comment = [line for line in out.splitlines() if line.startswith("# ")]
    assert "# 1 worker pod(s) x 2 ranks = world size 2, and a head" in comment
    assert any("6.5 M parameters: 0.08 GB per checkpoint" in line for line in comment)
    assert call(*RENDER, "run.name=first", "--output", str(tmp_path / "job.yaml")) == (0, "", "")
    assert (tmp_path / "job.yaml").read_text() == out
    code, _, err = call(*RENDER, "run.name=first", "--output", str(tmp_path))
    assert code == 2 and "cannot be written" in err


def test_a_kustomize_base_holds_the_same_documents(call, tmp_path):
    folder = tmp_path / "new/base"
    _, plain, _ = call(*RENDER, "run.name=first")
    assert call(*RENDER, "run.name=first", "--kustomize", str(folder)) == (0, "", "")
    assert sorted(path.name for path in folder.iterdir()) == [
        "configmap.yaml",
        "kustomization.yaml",
        "poddisruptionbudget.yaml",
        "rayjob.yaml",
    ]
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    assert [yaml.safe_load((folder / name).read_text()) for name in listed] == [*yaml.safe_load_all(plain)]
    before = {path: path.read_bytes() for path in folder.iterdir()}
    call(*RENDER, "run.name=first", "--kustomize", str(folder))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    code, _, err = call(*RENDER, "run.name=first", "--kustomize", str(folder / "rayjob.yaml"))
    assert code == 2 and "--kustomize" in err and "cannot be written" in err


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl")
def test_kustomize_builds_the_base(call, tmp_path):
    _, plain, _ = call(*RENDER, "run.name=first")
    call(*RENDER, "run.name=first", "--kustomize", str(tmp_path / "base"))
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text("resources: [../base]\nlabels: [{pairs: {team: research}}]\n")
    for folder, team in ((tmp_path / "base", None), (overlay, "research")):
        built = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=60)
        assert built.returncode == 0, built.stderr
        documents = {document["kind"]: document for document in yaml.safe_load_all(built.stdout)}
        assert {document["metadata"]["labels"].pop("team", None) for document in documents.values()} == {team}
        assert documents == {document["kind"]: document for document in yaml.safe_load_all(plain)}


def test_the_platform_is_written_without_a_recipe(call, tmp_path):
    code, out, err = call("k8s", "bootstrap", "--profile", CPU)
    assert (code, err) == (0, "") and out.startswith("# rendered by zerofleet k8s bootstrap\n")
    assert next(yaml.safe_load_all(out))["kind"] == "Namespace"
    assert call("k8s", "bootstrap", "--profile", CPU, "-o", str(tmp_path / "platform.yaml")) == (0, "", "")
    assert (tmp_path / "platform.yaml").read_text() == out
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(Path(CPU).read_text() + "queue: {kind: kueue, name: q}\n")
    code, out, err = call("k8s", "bootstrap", "--profile", str(wrong))
    assert (code, out) == (2, "") and "workers.max_nodes: it is not known" in err


def test_overrides_reach_the_job_that_the_head_reads(call):
    _, out, _ = call(*RENDER, "run.name=first", "train.steps=50")
    config_map = next(yaml.safe_load_all(out))
    assert yaml.safe_load(config_map["data"]["job.yaml"])["train"]["steps"] == 50


def test_mistakes_are_listed_and_nothing_is_written(call, tmp_path):
    output = tmp_path / "job.yaml"
    code, out, err = call(*RENDER, "cluster.gpus_per_rank=1", "data.cache=/x", "--output", str(output))
    assert (code, out) == (2, "") and not output.exists()
    for where in ("run.name: it is not set", "cluster.gpus_per_rank: it is 1", "data.cache: /x is a path"):
        assert f"  - {where}" in err
    code, _, err = call(*RENDER, "run.name=first", "deepspeed.elasticity.enabled=true")
    assert code == 2 and "was removed in DeepSpeed 0.19" in err  # the trainer's own lint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("workers: {gpuz: 8}", "workers.gpuz is not a key. The nearest is workers.gpus: GPUs of a node."),
        (
            "workers: {tolerations: [{kee: a}]}",
            "workers.tolerations.kee is not a key. The nearest is workers.tolerations.key",
        ),
        ("workers: {tolerations: [{key: a, effect: Nope}]}", "workers.tolerations.0.effect='Nope': expected"),
        ("workers: {gpus: true}", "workers.gpus=True: expected a number"),
        ("names: {}", "names is not a key. The nearest is namespace"),
        ("storage: {claim: My_Claim}", "storage.claim='My_Claim': expected"),
        ("", "namespace is missing: it has no default (namespace: Namespace of everything that is rendered.)"),
    ],
)
def test_a_wrong_key_names_the_nearest_right_one(call, tmp_path, text, expected):
    profile = tmp_path / "profile.yaml"
    profile.write_text(text + "\nimages: {}\n")
    code, _, err = call("k8s", "render", QUICKSTART, "--profile", str(profile))
    assert code == 2 and expected in err, err


def test_files_that_are_not_there(call, tmp_path):
    code, _, err = call("k8s", "render", QUICKSTART, "--profile", str(Path(CPU).with_name("cpus.yaml")))
    assert code == 4 and "profiles there:" in err and "cpu.yaml" in err
    (tmp_path / "empty.yaml").write_text("")
    code, _, err = call("k8s", "render", QUICKSTART, "--profile", str(tmp_path / "empty.yaml"))
    assert code == 2 and "it needs at least `namespace`" in err


def test_a_model_of_unknown_size_wants_its_number(call):
    arguments = [*RENDER, "run.name=first", "model.config={}", "model.pretrained=org/model"]
    code, _, err = call(*arguments)
    assert code == 2 and "--num-parameters" in err
    code, out, _ = call(*arguments, "--num-parameters", "1e8")
    assert code == 0 and "kind: RayJob" in out


@pytest.mark.parametrize("number", ["nan", "inf", "1e999", "-5", "0", "0.5", "1e308", "many"])
def test_a_number_of_parameters_that_no_model_has(call, capsys, number):
    with pytest.raises(SystemExit) as ended:
        call(*RENDER, "run.name=first", "--num-parameters", number)
    assert ended.value.code == 2
    assert f"argument --num-parameters: {number} is not a number from 1 to 1e+18" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "x"])
def test_a_size_that_no_model_has(call, value):
    code, out, err = call(*RENDER, "run.name=first", f"model.config.num_attention_heads={value}")
    assert (code, out) == (2, "") and "model.config.num_attention_heads is " in err


@pytest.mark.parametrize("file", ["/elsewhere/a.txt", "file:///elsewhere/a.txt"])
def test_a_path_in_a_mixture_that_pods_cannot_open(call, file):
    source = f"data.sources.web={{weight: 1, files: [python-stdlib, '{file}']}}"
    code, out, err = call(*RENDER, "run.name=first", "data.files=[]", "data.packing=best_fit", source)
    assert (code, out) == (2, "") and "data.sources.web.files.1: /elsewhere/a.txt is a path" in err


@pytest.mark.parametrize(
    "planted",
    [
        ("run.storage=s3://AKIAPLANTED:hunter2planted@bucket/runs",),
        ("data.files=[s3://AKIAPLANTED:hunter2planted@bucket/a.jsonl]",),
        (
            "data.files=[]",
            "data.packing=best_fit",
            "data.sources.web={weight: 1, files: ['s3://AKIAPLANTED:hunter2planted@bucket/a.jsonl']}",
        ),
        ("run.init_from=s3://AKIAPLANTED:hunter2planted@bucket/runs/a@3",),
    ],
)
def test_a_planted_secret_is_refused_and_not_repeated(call, planted):
    code, out, err = call(*RENDER, "run.name=first", *planted)
    assert code == 2 and "holds credentials" in err
    assert "PLANTED" not in (out + err).upper()


def test_a_secret_planted_in_a_profile_is_refused_and_not_repeated(call, tmp_path):
    mapping = yaml.safe_load(Path(CPU).read_text())
    mapping["storage"]["url"] = "s3://AKIAPLANTED:hunter2planted@bucket/runs"
    mapping["env"] = {"MY_TOKEN": "hunter3planted"}
    profile = tmp_path / "profile.yaml"
    profile.write_text(yaml.safe_dump(mapping))
    code, out, err = call("k8s", "render", QUICKSTART, "--profile", str(profile), "run.name=first")
    assert code == 2 and "env.MY_TOKEN" in err and "holds credentials" in err
    assert "PLANTED" not in (out + err).upper()


def test_without_torch_and_ray_in_under_a_second():
    """Of processor time, since what else runs on the machine is not the subject."""
    script = f"""
import sys, time
from zerofleet.launch.cli import main
assert main({[*RENDER, "run.name=first"]!r}) == 0
heavy = {{"torch", "ray", "transformers", "deepspeed", "numpy", "datasets", "wandb", "kubernetes"}} & set(sys.modules)
assert not heavy, heavy
print(time.process_time(), file=sys.stderr)
"""
    command = [sys.executable, "-c", script]
    runs = [subprocess.run(command, check=True, capture_output=True, text=True, timeout=60) for _ in range(3)]
    assert min(float(run.stderr) for run in runs) < 1.0
