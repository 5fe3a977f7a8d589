import pytest
import yaml

from zerofleet.launch.config import frozen_changes, load_job, override_job, parse_job
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.errors import NotFoundError, UserError

RECIPE = """
model: {config: {model_type: llama, hidden_size: 64}}
data: {files: [python-stdlib], sequence_length: 64}
train: {steps: 10, global_batch_size: 8, micro_batch_size: 2}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ZEROFLEET_STORAGE", raising=False)
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def refusal(recipe, *overrides) -> str:
    with pytest.raises(UserError) as caught:
        load_job(recipe, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_defaults_and_overrides(recipe):
    job = load_job(recipe, ["train.steps=20", "cluster.ranks_per_node=3", "model.config.rope_theta=1e4"])
    assert (job.train.steps, job.cluster.world_size, job.train.zero_stage) == (20, 3, 1)
    assert job.model.config["rope_theta"] == 1e4
    assert type(job.train_config()) is TrainConfig
    assert job.train_config().train == job.train


def test_the_resolved_yaml_gives_the_same_job(recipe):
    job = load_job(
        recipe, ["train.betas=[0.8, 0.9]", "deepspeed.zero_optimization.reduce_bucket_size=5e7", "run.name=a"]
    )
    assert parse_job(job.to_yaml(), "job.yaml") == job
    sections = [name for name in TrainConfig.model_fields if name != "silo"]  # of a silo only
    assert list(yaml.safe_load(job.to_yaml())) == [*sections, "cluster", "metrics"]


def test_storage_comes_from_the_environment_unless_given(recipe, tmp_path, monkeypatch):
    assert load_job(recipe).run.storage == str(tmp_path / "runs")
    monkeypatch.setenv("ZEROFLEET_STORAGE", "s3://bucket/runs")
    assert load_job(recipe).run.storage == "s3://bucket/runs"
    assert load_job(recipe, ["run.storage=here"]).run.storage == str(tmp_path / "here")


def test_local_paths_become_absolute_and_others_stay(recipe, tmp_path):
    (tmp_path / "tok").mkdir()
    job = load_job(recipe, ["data.files=[a/*.txt, s3://b/*.txt, python-stdlib]", "data.tokenizer=tok"])
    assert job.data.files == [f"{tmp_path}/a/*.txt", "s3://b/*.txt", "python-stdlib"]
    assert job.data.tokenizer == str(tmp_path / "tok")
    assert load_job(recipe, ["data.tokenizer=org/model"]).data.tokenizer == "org/model"


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("train.stepz=1", "train.steps"),
        ("trian.steps=1", "train.steps"),
        ("learning_rate=1", "train.learning_rate"),
        ("train.sequence_length=1", "data.sequence_length"),
        ("cluster.ranks=1", "cluster.ranks_per_node"),
        ("data.hub.nam=x", "data.hub.name"),
        ("clutser.nodes=1", "cluster.nodes"),
    ],
)
def test_a_wrong_key_names_the_nearest_right_one(recipe, override, nearest):
    wrong = override.partition("=")[0]
    assert refusal(recipe, override).startswith(f"{wrong} is not a key. The nearest is {nearest}: ")


def test_a_wrong_key_in_the_file_names_file_and_key(recipe):
    recipe.write_text(RECIPE + "checkpoint: {intervall_steps: 3}\n")
    message = refusal(recipe)
    assert message.startswith(
        f"{recipe}: checkpoint.intervall_steps is not a key. The nearest is checkpoint.interval_steps"
    )


def test_a_key_like_no_other_lists_the_section(recipe):
    assert "The top level has: run, model, data" in refusal(recipe, "qqq=1")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "train.steps=many",
            "train.steps='many': expected a whole number (train.steps: Optimizer steps of the whole run.)",
        ),
        ("train.steps=2.5", "train.steps=2.5: expected a whole number"),
        ("train.steps=0", "train.steps=0: expected greater than or equal to 1"),
        ("train.steps=true", "train.steps=True: expected a number"),
        ("train.zero_stage=4", "train.zero_stage=4: expected 0, 1, 2 or 3"),
        ("train.precision=fp8", "train.precision='fp8': expected 'bf16', 'fp16' or 'fp32'"),
        ("train.deterministic=maybe", "train.deterministic='maybe': expected true or false"),
        ("data.files=one.txt", "data.files='one.txt': expected a list, such as [a, b]"),
        ("train=3", "train=3: expected a section"),
        ("data.tokenizer_vocab_size=256", "data.tokenizer_vocab_size=256: expected greater than or equal to 257"),
        ("run.name=Big Run", "run.name='Big Run': expected"),
        ("train.warmup_steps=11", "warmup_steps (11) + decay_steps (0) exceed steps (10)"),
        ("model.pretrained=gpt2", "one of the two"),
    ],
)
def test_a_wrong_value_says_field_value_and_what_is_expected(recipe, override, expected):
    assert expected in refusal(recipe, override)


def test_all_mistakes_are_listed(recipe):
    message = refusal(recipe, "train.steps=x", "train.zero_stage=9", "data.format=pdf")
    assert message.count("\n  - ") == 3


def test_a_missing_field_is_named(recipe):
    recipe.write_text(RECIPE.replace("steps: 10, ", ""))
    assert "train.steps is missing: it has no default (train.steps: Optimizer steps" in refusal(recipe)


def test_text_fields_take_what_looks_like_a_number(recipe):
    assert load_job(recipe, ["run.name=007"]).run.name == "007"
    assert load_job(recipe, ["run.name='007'"]).run.name == "007"
    assert load_job(recipe, ["run.name=null"]).run.name is None


def test_a_missing_recipe_is_not_found_and_names_its_neighbours(recipe):
    with pytest.raises(NotFoundError, match=r"recipes there: .*recipe\.yaml") as caught:
        load_job(recipe.parent / "recipes.yaml")
    assert caught.value.exit_code == 4


def test_a_folder_and_bytes_are_no_recipes(recipe, tmp_path):
    assert "is a folder" in refusal(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"model: \xff")
    assert "is not UTF-8: byte 0xff at 7" in refusal(tmp_path / "b.yaml")


def test_frozen_fields_are_what_the_sample_order_depends_on(recipe):
    job = load_job(recipe, ["run.name=a"])
    frozen = [
        "run.seed=1",
        "run.init_from=b@5",
        "run.name=b",
        "run.storage=/x",
        "data.sequence_length=32",
        "model.config.hidden_size=32",
    ]
    for override in [*frozen, "train.global_batch_size=4"]:
        (change,) = frozen_changes(job, override_job(job, [override]))
        assert change.startswith(f"{override.partition('=')[0]} is frozen")
    free = [
        "train.steps=99",
        "train.zero_stage=3",
        "cluster.ranks_per_node=1",
        "train.micro_batch_size=1",
        "data.cache=/y",
    ]
    assert frozen_changes(job, override_job(job, [*free, "deepspeed.log_level=info", "run.seed=0"])) == []


MIXTURE = """
model: {config: {model_type: llama}}
data:
  sources:
    web: {files: [web/*.txt], weight: 7}
    code: {files: [python-stdlib], weight: 3}
  packing: best_fit
train: {steps: 10, global_batch_size: 8, micro_batch_size: 2}
"""


def test_a_mixture_of_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(MIXTURE)
    data = load_job(tmp_path / "recipe.yaml", ["data.sources.web.weight=2"]).data
    assert data.weights == {"web": 2.0, "code": 3.0} and list(data.by_source) == ["code", "web"]
    assert data.by_source["web"].files == [f"{tmp_path}/web/*.txt"]
    assert data.by_source["code"].files == ["python-stdlib"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.packing=concatenate", "`data.sources` needs data.packing=best_fit"),
        (
            "data.files=[x]",
            "give `data.files` (globs, or `python-stdlib`), `data.hub`, `data.sources` or `data.stream`, one of the four",
        ),
        ("data.sources.web.files=[]", "data.sources.web: a source of `data.sources` has either `files` or `hub`"),
        ("data.sources.web.weight=0", "data.sources.web.weight=0: expected greater than 0"),
        ("data.sources.more.files=[x]", "data.sources.more.weight is missing"),
        (
            "data.sources.web.weigth=1",
            "data.sources.web.weigth is not a key. The nearest is data.sources.web.weight: Its",
        ),
        (
            "data.sources.web.hub.nam=x",
            "data.sources.web.hub.nam is not a key. The nearest is data.sources.web.hub.name:",
        ),
        ("data.sourcs.web.weight=1", "data.sourcs.web.weight is not a key. The nearest is data.sources.<name>.weight:"),
        (
            "data.sources.web.weight=true",
            "data.sources.web.weight=True: expected a number (data.sources.web.weight: Its",
        ),
        ("data.sources.a.b.c=1", "data.sources.a.b.c is not a key"),
    ],
)
def test_a_mixture_that_is_none_is_refused(tmp_path, override, expected):
    (tmp_path / "recipe.yaml").write_text(MIXTURE)
    assert expected in refusal(tmp_path / "recipe.yaml", override)


def test_text_of_a_source_may_look_like_a_number(tmp_path):
    (tmp_path / "recipe.yaml").write_text(MIXTURE)
    job = load_job(tmp_path / "recipe.yaml", ["data.sources.web.text_field=007"])
    assert job.data.sources["web"].text_field == "007"


def test_a_source_whose_name_has_dots(tmp_path):
    (tmp_path / "recipe.yaml").write_text(MIXTURE.replace("web:", "web.2024:").replace("weight: 7", "weight: true"))
    assert "data.sources.web.2024.weight=True: expected a number" in refusal(tmp_path / "recipe.yaml")
