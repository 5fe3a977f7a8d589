"""A job as torchrun is given it, and whether it may go on with a run that is there already."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import ValidationError

from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.driver_records import DriverRecord, driver_records
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.frozen import frozen_changes
from zerofleet.trainer.run_folder import RunFolder


def check_takeover(run: RunFolder, config: TrainConfig, source: str) -> None:
    """Raises UserError when a driver of the run lives on this host, when the job changes what is frozen, or when it lacks
    what the run was resumed with. `source` names the job in errors."""
    drivers = driver_records(run)
    if drivers and drivers[-1].is_here and drivers[-1].is_alive(last_event_at=0.0):
        raise UserError(
            f"run {run.name!r} is driven by process {drivers[-1].pid} on this host: `zerofleet stop {run.name}` saves and "
            "ends it; then start torchrun again"
        )
    job = config.model_dump(mode="json")
    own = parse_config(run.job_yaml(), f"{run.storage.url}/job.yaml").model_dump(mode="json")
    own["run"] |= {"name": config.run.name, "storage": config.run.storage}  # found by them; it may have been moved
    if changes := frozen_changes(own, job):
        raise UserError(
            f"run {run.name!r} cannot be trained on with {source}: {'; '.join(changes)}. Take the run's own job.yaml, or give "
            "the new run another run.name"
        )
    if lacking := lacking_overrides(drivers, job):
        raise UserError(
            f"run {run.name!r} was resumed with {' '.join(lacking)}, which {source} does not say: set it in a copy of the "
            f"file and start torchrun with the copy, or go on with `zerofleet resume {run.name}`"
        )


def parse_config(text: str, source: str) -> TrainConfig:
    """The sections of a job that a rank reads. Raises UserError; `source` names the text in it."""
    try:
        sections = yaml.safe_load(text)
        return TrainConfig(**{key: value for key, value in sections.items() if key in TrainConfig.model_fields})
    except (yaml.YAMLError, ValidationError, AttributeError) as error:
        raise UserError(f"{source} is not a job: {error}") from error


def lacking_overrides(drivers: list[DriverRecord], job: dict[str, Any]) -> list[str]:
    """The `key=value` that the run was resumed with, the last of each key, which the job says otherwise."""
    last = dict(override.split("=", 1) for driver in drivers for override in driver.overrides)
    return [
        f"{path}={text}"
        for path, text in last.items()
        if path.partition(".")[0] in TrainConfig.model_fields and not _says(job, path, text)
    ]


def _says(job: dict[str, Any], path: str, text: str) -> bool:
    value: Any = job
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            return False
        value = value[key]
    return _is_text_of(value, text)


def _is_text_of(value: Any, text: str) -> bool:
    """Whether an override's text means this value: as YAML, as the plain text, or as a number that YAML 1.1 takes for text."""
    if value == yaml.safe_load(text) or value == text:
        return True
    try:
        return isinstance(value, int | float) and float(value) == float(text)
    except ValueError:
        return False
