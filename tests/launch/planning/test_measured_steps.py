"""What a calibration trains. That it does is tests/integration's; the steps themselves are a run like any other."""

from __future__ import annotations

from zerofleet.launch.config import parse_job
from zerofleet.launch.planning.measured_steps import _shortened

JOB = """
model: {config: {model_type: llama, hidden_size: 64}}
data: {files: [python-stdlib]}
train: {steps: 5000, global_batch_size: 8, micro_batch_size: 2, warmup_steps: 100, eval_interval_steps: 10}
checkpoint: {interval_steps: auto, interval_s: 60, snapshot_interval_steps: 1}
tracking: {wandb: {enabled: true}}
metrics: {port: 9100}
"""


def test_it_is_short_saves_only_at_its_end_and_tells_nobody(tmp_path):
    job = _shortened(parse_job(JOB, "test", []), str(tmp_path), 4)
    assert (job.train.steps, job.train.warmup_steps, job.train.eval_interval_steps) == (4, 0, 0)
    checkpoint = job.checkpoint
    assert (checkpoint.interval_steps, checkpoint.interval_s, checkpoint.snapshot_interval_steps) == (0, 0, 0)
    assert not checkpoint.export and not job.tracking.wandb.enabled and job.metrics.port is None
    assert job.run.storage == str(tmp_path)
