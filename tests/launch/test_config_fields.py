"""The list of settings is frozen: adding, renaming or removing one is a decision, seen in a diff of this file."""

import pytest

from zerofleet.launch.config import job_fields
from zerofleet.launch.config_fields import nearest

FIELDS = """
run run.name run.storage run.seed run.init_from
model model.config model.pretrained model.attn_implementation model.liger_kernels
data data.files data.hub data.hub.id data.hub.name data.hub.split data.hub.revision data.format data.text_field data.sources
data.sources.<name> data.sources.<name>.files data.sources.<name>.hub data.sources.<name>.hub.id data.sources.<name>.hub.name
data.sources.<name>.hub.split data.sources.<name>.hub.revision data.sources.<name>.format data.sources.<name>.text_field
data.sources.<name>.weight data.stream data.stream.url data.stream.window_shards data.stream.max_bytes
data.on_bad data.max_document_bytes data.filter data.scrub data.deduplicate data.tokenizer data.tokenizer_vocab_size data.sequence_length data.packing data.curriculum_stages data.document_mask data.heldout_fraction
data.cache
train train.steps train.global_batch_size train.micro_batch_size train.min_micro_batch_size train.zero_stage train.precision
train.activation_checkpointing train.compile train.moments_precision train.keep_freed_memory train.gradient_clipping train.learning_rate train.betas train.eps train.weight_decay
train.schedule train.warmup_steps train.decay_steps train.min_learning_rate_ratio train.eval_interval_steps
train.eval_sequences train.deterministic train.loss_spike_threshold train.replica_check_interval_steps train.profile train.profile.steps train.profile.ranks
checkpoint checkpoint.interval_steps checkpoint.interval_s checkpoint.snapshot_interval_steps checkpoint.keep_last
checkpoint.keep_every_steps checkpoint.export checkpoint.export_dtype
deepspeed
tracking tracking.wandb tracking.wandb.enabled tracking.wandb.project tracking.wandb.entity
silo silo.name silo.interval_steps silo.overlap_steps silo.codec silo.proximal_mu silo.privacy silo.privacy.clip_norm silo.privacy.noise_multiplier silo.privacy.delta
silo.key_file silo.masking silo.masking.weight silo.masking.weight_limit
cluster cluster.address cluster.labels cluster.nodes cluster.min_nodes cluster.replace_timeout_s cluster.ranks_per_node
cluster.cpus_per_rank cluster.bind_cores cluster.gpus_per_rank cluster.placement_timeout_s cluster.start_timeout_s cluster.stall_timeout_s
cluster.stop_timeout_s cluster.storage_timeout_s cluster.max_failures cluster.max_hours cluster.max_cost cluster.price_per_hour cluster.max_quarantined_steps
metrics metrics.port metrics.address
silos silos.members silos.members.<name> silos.members.<name>.files silos.members.<name>.hub
silos.members.<name>.hub.id silos.members.<name>.hub.name silos.members.<name>.hub.split
silos.members.<name>.hub.revision silos.members.<name>.format silos.members.<name>.text_field
silos.members.<name>.weight silos.members.<name>.address silos.members.<name>.labels silos.members.<name>.nodes
silos.members.<name>.ranks_per_node silos.members.<name>.zero_stage silos.members.<name>.key_file silos.members.<name>.environment_file silos.strategy silos.strategy_options
silos.interval_steps silos.overlap_steps silos.codec
silos.privacy silos.privacy.clip_norm silos.privacy.noise_multiplier silos.privacy.delta silos.secure_aggregation silos.aggregation silos.trimmed_fraction silos.quorum silos.deadline_s silos.keep_rounds silos.listen
""".split()  # noqa: SIM905 - a diff shows the one name that changed


def test_the_list_of_settings():
    assert list(job_fields()) == FIELDS


@pytest.mark.parametrize("path", FIELDS)
def test_every_setting_is_documented_in_a_sentence(path):
    doc = job_fields()[path].doc
    assert len(doc) >= 8 and doc.endswith("."), f"{path}: {doc!r}"


@pytest.mark.parametrize("path", [path for path in FIELDS if path.endswith("_s")])
def test_seconds_are_called_seconds(path):
    assert "Seconds" in job_fields()[path].doc


def test_nothing_is_near_to_nonsense():
    assert nearest("qqq", job_fields()) is None
