"""What rank 0 says of a job before its first step: the arithmetic."""

from __future__ import annotations

from zerofleet.trainer.batch import BatchPlan
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.data.cache import DataCache
from zerofleet.trainer.engine import Engine
from zerofleet.trainer.flops import Peak
from zerofleet.trainer.reporter import Reporter


def describe(
    config: TrainConfig, plan: BatchPlan, built: Engine, cache: DataCache, peak: Peak, reporter: Reporter
) -> None:
    """Tells the batch, the model, the data and what MFU is measured against."""
    reporter.event("info", "build", message=plan.describe(config.data.sequence_length))
    if peak.is_emulated:
        reporter.event("incident", "build", message=peak.warning(config.train.precision))
    reporter.event(
        "info",
        "build",
        message=f"{built.shape.num_parameters:,} parameters, ZeRO-{config.train.zero_stage}, {config.train.precision}, "
        f"{type(built.engine.optimizer).__name__}; {cache.train.num_sequences:,} training and "
        f"{cache.heldout.num_sequences:,} held-out sequences; peak {peak.flops_per_second / 1e9:.0f} GFLOP/s per rank ({peak.source})",
        num_parameters=built.shape.num_parameters,
        peak_flops_per_second=peak.flops_per_second,
    )
