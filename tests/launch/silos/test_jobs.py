import json

from tests.launch.silos.conftest import RECIPE
from tests.trainer.data.corpora import quiet
from zerofleet.launch.checks import check_job
from zerofleet.launch.config import JobConfig, load_job, parse_job
from zerofleet.launch.silos.driver import faults_of
from zerofleet.launch.silos.jobs import shared_tokenizer, silo_job, weight_limit
from zerofleet.launch.silos.process import changes
from zerofleet.trainer.data.prepare import train_tokenizer

WEIGHTS = (0.4, 0.3, 0.2, 0.1)


def test_a_silo_has_its_own_data_ranks_and_folder_and_nothing_of_the_others(recipe, tmp_path):
    job = load_job(recipe)
    own = silo_job(job, "a", "/tokenizer")
    assert own.data.files == [f"{tmp_path}/a/*.txt"] and own.data.tokenizer == "/tokenizer"
    assert (own.cluster.ranks_per_node, own.train.zero_stage) == (1, 3)
    assert (own.run.name, own.run.storage) == ("a", "/runs/r/silos")
    assert own.silo is not None and own.silo.interval_steps == 5
    assert "b/*.txt" not in own.to_yaml()
    other = silo_job(job, "b", None)
    assert other.cluster == job.cluster


def test_a_silos_job_is_read_back_as_it_is(recipe):
    own = silo_job(load_job(recipe), "a", "/tokenizer")
    assert parse_job(own.to_yaml(), "job.yaml") == own


def test_a_job_without_silos_says_nothing_of_them(recipe):
    text = RECIPE[: RECIPE.index("silos:")]
    assert "silo" not in parse_job(text, "job.yaml").to_yaml()


def test_fedprox_tells_the_silos_its_mu(recipe):
    job = load_job(recipe, ["silos.strategy=fedprox", "train.precision=fp32"])
    check_job(job)
    own = silo_job(job, "a", None)
    assert own.silo is not None and own.silo.proximal_mu == 0.01
    own = silo_job(load_job(recipe, ["silos.strategy=fedprox", "silos.strategy_options={mu: 0.5}"]), "a", None)
    assert own.silo is not None and own.silo.proximal_mu == 0.5


def test_with_masks_a_silo_knows_its_share_of_what_all_can_send(recipe):
    """8 sequences of 64 tokens in each of 5 steps, the one silo with weight 1, the other with 2."""
    masking = [silo_job(load_job(recipe, ["silos.secure_aggregation=true"]), name, None).silo for name in "ab"]
    assert [(own.masking.weight, own.masking.weight_limit) for own in masking] == [(1, 7680), (2, 7680)]


def test_what_all_can_send_is_the_exact_sum_of_their_weights(recipe):
    """Their plain sum is below 1, and what is sent would exceed the limit."""
    members = {
        name: {"files": [f"{name}/*.txt"], "weight": weight} for name, weight in zip("abcd", WEIGHTS, strict=True)
    }
    job = load_job(recipe, [f"silos.members={json.dumps(members)}"])
    assert job.silos is not None and weight_limit(job, job.silos) == 8 * 64 * 5


def test_a_resume_hands_on_what_may_change_and_nothing_else(recipe):
    before = silo_job(load_job(recipe), "a", None)
    after = silo_job(load_job(recipe, ["train.steps=40", "cluster.stop_timeout_s=7", "run.seed=3"]), "a", None)
    assert changes(before, after) == ["train.steps=40", "cluster.stop_timeout_s=7.0"]
    assert isinstance(before, JobConfig)


def test_faults_go_to_the_silo_that_they_name():
    text = '[{"kind": "nan", "rank": 0, "step": 4, "silo": "b"}, {"kind": "kill", "rank": 0, "step": 9}]'
    assert faults_of("a", text) == '[{"kind": "kill", "rank": 0, "step": 9}]'
    assert '"nan"' in faults_of("b", text) and '"silo"' not in faults_of("b", text)
    assert faults_of("a", "") == ""


def test_the_tokenizer_of_all_silos_is_trained_as_a_run_of_one_would_train_it(recipe, tmp_path):
    (tmp_path / "all.txt").write_text("text that every silo may see\n")
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    overrides = [
        f"data.files=[{tmp_path}/*.txt]",
        "data.tokenizer_vocab_size=260",
        "data.cache=cache",
        "data.on_bad=quarantine",
    ]
    job = load_job(recipe, overrides)
    folder = shared_tokenizer(job)
    assert folder == str(train_tokenizer(job.data, quiet)) and folder.startswith(f"{tmp_path}/cache/tokenizers/")
    assert shared_tokenizer(load_job(recipe, ["data.tokenizer=/given"])) == "/given"
