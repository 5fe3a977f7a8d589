import subprocess
import sys

import pytest

from zerofleet.launch.checks import check_job, check_machine
from zerofleet.launch.config import load_job
from zerofleet.launch.silos.findings import FEWEST_MASKED, MOST_MASKED_NOISE
from zerofleet.launch.silos.jobs import silo_job
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.silos.fixed_point import MASKED


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("silos.interval_steps=6", "train.steps=20 is no multiple of 6"),
        ("silos.strategy=every_step", "every_step takes 1"),
        ("silos.overlap_steps=6", "silos.overlap_steps: it is 6 and a round has 5 inner steps"),
        ("silos.quorum=3", "there are 2 silos"),
        ("silos.members={a: {files: [x]}}", "two or more"),
        ("silos.aggregation=median", "a round of 2 silos is too small for `median`, which takes 3"),
        ("silos.members={a: {files: [x]}, b: {}}", "either `files` or `hub`"),
        ("deepspeed.zero_optimization.offload_param.device=cpu", "silos.members.b: deepspeed"),
    ],
)
def test_what_contradicts_itself_is_refused(recipe, override, says):
    with pytest.raises(UserError, match=says.replace("(", "\\(")):
        check_job(load_job(recipe, [override]))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["silos.strategy=every_step", "silos.interval_steps=1"],
            "silos.overlap_steps: every_step takes an outer step after each",
        ),
        (["silos.secure_aggregation=true", "silos.members.c={files: [x]}"], "silos.overlap_steps: masks are agreed on"),
    ],
)
def test_outer_steps_that_cannot_go_on_beside_inner_ones(recipe, overrides, says):
    with pytest.raises(UserError, match=says):
        check_job(load_job(recipe, ["silos.overlap_steps=1", *overrides]))
    check_job(load_job(recipe, ["silos.overlap_steps=5"]))


def test_silos_of_one_cluster_that_labels_do_not_keep_apart(recipe, capsys):
    apart = ["cluster.address=10.0.0.1:6379", "silos.members.a.labels={party: a}", "silos.members.b.labels={party: b}"]
    check_job(load_job(recipe, apart))
    assert "share nodes" not in capsys.readouterr().err
    with pytest.raises(UserError, match="silo b has no labels and may take the nodes of silo a"):
        check_job(load_job(recipe, apart[:2]))
    check_job(load_job(recipe, [*apart[:2], "silos.members.b.address=10.0.0.9:6379"]))
    check_job(load_job(recipe, [*apart[:2], "silos.members.b.labels={party: a, site: x}"]))
    said = capsys.readouterr().err
    assert "every node with the labels of silo b has those of silo a: the two may share nodes" in said
    check_job(load_job(recipe, [apart[0], "cluster.labels={party: a}"]))
    assert capsys.readouterr().err.count("the two may share nodes") == 1
    own = silo_job(load_job(recipe, ["cluster.labels={party: z}", apart[1]]), "a", None)
    assert own.cluster.labels == {"party": "a"}


def test_labels_are_those_of_a_cluster_that_is_joined(recipe):
    job = load_job(recipe, ["cluster.labels={party: a}", "cluster.cpus_per_rank=0.1"])
    with pytest.raises(UserError, match="silo a is to run on nodes with the label.* party=a, and a Ray of its own"):
        check_machine(job)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["train.precision=fp16"], "fedprox in silo a: fp16 gradients"),
        (
            ["train.precision=bf16", "train.zero_stage=1"],
            "fedprox in silo b: in bf16 DeepSpeed keeps gradients of ZeRO-1",
        ),
        (
            ["deepspeed.zero_optimization.offload_optimizer.device=cpu", "train.zero_stage=1"],
            "remove offload_optimizer",
        ),
        (["silos.strategy_options={drag: 1}"], "has no option drag"),
    ],
)
def test_fedprox_is_refused_where_its_term_cannot_be_part_of_the_gradient(recipe, overrides, says):
    with pytest.raises(UserError, match=says):
        check_job(load_job(recipe, ["silos.strategy=fedprox", *overrides]))


def test_silos_are_not_bound_to_cores(recipe):
    with pytest.raises(UserError, match="silos on one host would take the same cores"):
        check_job(load_job(recipe, ["cluster.bind_cores=true"]))


def test_private_silos_need_a_place_for_their_secrets(recipe):
    privacy = "silos.privacy={clip_norm: 1, noise_multiplier: 2}"
    check_job(load_job(recipe, [privacy]))
    remote = load_job(recipe, [privacy, "run.storage=s3://bucket/runs", "silos.members.a.key_file=/etc/key"])
    with pytest.raises(UserError, match="no place for the secrets of b: name a file"):
        check_job(remote)
    own = silo_job(remote, "a", None)
    assert own.silo is not None and own.silo.key_file == "/etc/key"
    assert own.silo.privacy is not None and own.silo.privacy.delta == 1e-5


FIVE = "silos.members={" + ", ".join(f"{name}: {{files: [{name}.txt]}}" for name in "abcde") + "}"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([], ""),
        (["silos.quorum=3"], ""),
        (["silos.trimmed_fraction=0.4"], ""),
        (
            ["silos.trimmed_fraction=0.4", "silos.quorum=4"],
            "a round of 4 silos is too small for `trimmed_mean`, which takes 5",
        ),
        (["silos.members.b.weight=2"], "counts silos alike, and b has a `weight`"),
    ],
)
def test_a_trimmed_mean_needs_enough_silos_in_the_smallest_round(recipe, overrides, says):
    job = load_job(recipe, [FIVE, "silos.aggregation=trimmed_mean", *overrides])
    if not says:
        return check_job(job)
    with pytest.raises(UserError, match=says):
        check_job(job)


THREE = "silos.members={a: {files: [a]}, b: {files: [b]}, c: {files: [c]}}"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["silos.members={a: {files: [a]}, b: {files: [b]}}"], "2 silos would know each other's deltas"),
        (["silos.codec=int8"], "a sum of int8 has none"),
        (["silos.aggregation=median"], "`median` looks at each delta"),
        (["silos.privacy={clip_norm: 1, noise_multiplier: 2}"], "noise of 2 would leave it"),
    ],
)
def test_what_cannot_be_done_under_masks_is_refused(recipe, overrides, says):
    with pytest.raises(UserError, match=says):
        check_job(load_job(recipe, [THREE, "silos.secure_aggregation=true", *overrides]))


def test_a_quorum_that_masks_would_outlive_is_warned_of(recipe, capsys):
    check_job(load_job(recipe, [THREE, "silos.secure_aggregation=true", "silos.quorum=2"]))
    assert "quorum" not in capsys.readouterr().err
    check_job(load_job(recipe, [THREE, "silos.secure_aggregation=true"]))
    assert "masks survive the loss of 1 silos and silos.quorum does not: set it to 2" in capsys.readouterr().err


def test_the_numbers_are_those_of_the_code_behind_the_extra():
    masking = pytest.importorskip("zerofleet.trainer.silos.masking", reason="the extra `silos` is not installed")
    assert masking.MIN_SILOS == FEWEST_MASKED
    assert MASKED.max_magnitude == 8 * MOST_MASKED_NOISE


_LIGHT = """
import sys
for name in ("numpy", "numba", "torch", "ray"):
    sys.modules[name] = None
from zerofleet.launch.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "override", ["silos.strategy=fedprox", "silos.aggregation=median", "silos.aggregation=trimmed_mean"]
)
def test_what_is_chosen_between_silos_is_validated_with_the_light_install(recipe, override):
    """Two silos are too few for a robust mean: it says so, and needs no compiler to know."""
    command = [sys.executable, "-c", _LIGHT, "validate", str(recipe), "train.precision=fp32", override]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == (0 if "fedprox" in override else 2), done.stderr
